"""Linear segmentation: one linear layer on the frozen tokens of the last block, its logits brought to the mask's pixels
by bilinear interpolation (the linear setting of DINOv2, Oquab et al. 2024, section 7.4).

Letters: n images, C classes, D width, h w patches, H W pixels of a mask, G learning rates, b images and P pixels of a
step.

A linear layer and a linear interpolation commute, so that a step needs the logits only at the pixels that it draws:
cross entropy at P random pixels of each image has the gradient of all its pixels on average.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from equimid.errors import UserError
from equimid.evaluation.features import Preprocessing, image_batches
from equimid.evaluation.grids import warn_of_end
from equimid.evaluation.masks import IGNORED, MaskedImages, open_masks
from equimid.evaluation.study import Study
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["class_iou", "measure_segmentation", "pixel_counts"]

_MOMENTUM = 0.9
_BATCH = 16
_RESAMPLES = 1000

Mask = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _WholeImage(Preprocessing):
    """The whole image on a square, whatever its shape: masks have a say up to the border."""

    def __call__(self, image: Image.Image) -> Tensor:
        return super().__call__(image.resize((self.size, self.size), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class _Heads:
    """G linear layers, weight (G, C, D) and bias (G, C), on tokens standardised by mean and deviation (D,)."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (b, G, C, h, w) of tokens (b, D, h, w)."""
        x = (tokens.to(self.mean) - self.mean[:, None, None]) / self.deviation[:, None, None]
        return torch.einsum("bdhw,gcd->bgchw", x, self.weight) + self.bias[..., None, None]


def measure_segmentation(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Mean IoU over the classes that occur in the test masks, with a 95 % interval by a bootstrap over images, and the
    IoU of each. The learning rate is chosen on a held-out part of the training images, the layer trained anew on all
    of them; the test images are used once.

    Raises:
        UserError: images without a mask; a mask that is no class numbers, of another size than its image or with a
            class beyond those named; fewer than two training images or classes; a size that does not suit.
    """
    fit, test, names = open_masks(data, train)
    config, seed = study.config.segmentation, study.scope.seed
    fit = fit.take(np.sort(counted_generator(seed, "segmentation images").permutation(len(fit))[: config.images]))
    found = max(fit.classes(names), test.classes(names))
    classes = len(names) or found
    names = names or tuple(str(number) for number in range(classes))
    if len(fit) < 2 or classes < 2:
        raise UserError(
            f"{len(fit)} training images and masks of {classes} classes, {IGNORED} being none; expected two or more "
            "of both: give more images, or other class numbers"
        )
    preprocessing = _preprocessing(study)
    tokens = torch.cat([part.half() for part in _tokens(study, fit, preprocessing)])
    masks = [fit.mask(i) for i in range(len(fit))]
    rate, details = _choose(study, tokens, masks, classes)
    heads = _fit(study, tokens, masks, classes, (rate,))
    counts, done = [], 0
    for part in _tokens(study, test, preprocessing):
        for one in part.split(1):
            counts.append(pixel_counts(heads(one.to(study.device))[0, 0], test.mask(done)))
            done += 1
    details |= {"size": preprocessing.size, "training_images": len(fit)}
    return _records(study, np.stack(counts), names, details)


def pixel_counts(logits: Tensor, mask: Mask) -> Counts:
    """Of one image, (C, 3): for each class the pixels where prediction and mask have it, those of the mask, those of
    the prediction; none where the mask is IGNORED. Logits (C, h, w) are interpolated to the mask (H, W)."""
    classes = len(logits)
    with torch.no_grad():
        fine = F.interpolate(logits[None], mask.shape, mode="bilinear", align_corners=False)[0]
        # a layer that diverged predicts a class that there is not
        predicted = fine.argmax(0).masked_fill(fine.isnan().any(0), classes).cpu().numpy()
    known = mask != IGNORED
    truth, found = mask[known].astype(np.int64), predicted[known]
    columns = (truth[truth == found], truth, found)
    return np.stack([np.bincount(column, minlength=classes + 1)[:classes] for column in columns], axis=1)


def class_iou(counts: npt.NDArray[Any]) -> Floats:
    """Intersection over union (..., C) of counts (..., C, 3) summed over images; NaN for a class that no mask has."""
    both, truth, found = np.moveaxis(counts.astype(np.float64), -1, 0)
    iou: Floats = np.divide(both, truth + found - both, out=np.full(both.shape, np.nan), where=truth > 0)
    return iou


def _preprocessing(study: Study) -> Preprocessing:
    own, patch = study.preprocessing, study.encoder.patch
    size = study.config.segmentation.size or own.size
    if size % patch:
        near = max(patch, round(size / patch) * patch)
        raise UserError(f"evaluation.segmentation.size is {size}, not a multiple of the {patch} px patch; try {near}")
    return _WholeImage(size, 1.0, own.mean, own.std)


def _tokens(study: Study, images: MaskedImages, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Tokens (b, D, h, w) after the final norm, batch by batch, on the CPU."""
    encoder, done = study.encoder, 0
    with study.bar(f"tokens, {study.scope.subject}") as progress:
        for x in image_batches(images.source, preprocessing, batch_size=_BATCH, workers=study.workers):
            try:
                with torch.no_grad():
                    last = encoder.look(x.to(study.device), [encoder.depth]).maps[encoder.depth]
                    normed = encoder.final_norm(last.movedim(1, -1)).movedim(-1, 1)
            except (AssertionError, ValueError) as error:
                if preprocessing.size == study.preprocessing.size:
                    raise
                raise UserError(
                    f"the network takes no images of {preprocessing.size} px ({error}); leave "
                    "evaluation.segmentation.size at 0"
                ) from None
            yield normed.float().cpu()
            done += len(x)
            if progress:
                progress(done, len(images))


def _choose(study: Study, tokens: Tensor, masks: Sequence[Mask], classes: int) -> tuple[float, dict[str, Any]]:
    """The rate with the greatest mean IoU on held-out images, and what a record says of it."""
    rates = study.config.segmentation.rates
    order = counted_generator(study.scope.seed, "segmentation held out").permutation(len(masks))
    held, kept = np.split(order, [math.ceil(study.config.held_out * len(masks))])
    heads = _fit(study, tokens[kept], [masks[i] for i in kept], classes, rates)
    total = np.zeros((len(rates), classes, 3), dtype=np.int64)
    for i in held.tolist():
        logits = heads(tokens[i : i + 1].to(study.device))[0]
        total += np.stack([pixel_counts(of_rate, masks[i]) for of_rate in logits])
    found = [100 * _mean(iou) for iou in class_iou(total)]
    best = int(np.argmax(found))
    details: dict[str, Any] = {
        "rate": rates[best],
        "held_out_miou": found[best],
        "epochs": study.config.segmentation.epochs,
    }
    details |= warn_of_end(rates[best], rates)
    return rates[best], details


def _mean(iou: Floats) -> float:
    """Over the classes that occur; 0 where none does."""
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else 0.0


def _fit(study: Study, tokens: Tensor, masks: Sequence[Mask], classes: int, rates: Sequence[float]) -> _Heads:
    """A layer a rate, from tokens (n, D, h, w): SGD with momentum 0.9, no weight decay, cosine per epoch, from zero."""
    config, device = study.config.segmentation, study.device
    rng = counted_generator(study.scope.seed, "segmentation")
    mean, deviation = _statistics(tokens)
    weight = torch.zeros(len(rates), classes, tokens.shape[1], device=device, requires_grad=True)
    bias = torch.zeros(len(rates), classes, device=device, requires_grad=True)
    heads = _Heads(weight, bias, mean.to(device), deviation.to(device))
    speeds = [torch.zeros_like(p) for p in (weight, bias)]
    peak = torch.tensor(rates, device=device)
    with study.bar(f"segmentation, {study.scope.subject}") as progress:
        for epoch in range(config.epochs):
            step_sizes = peak * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
            for rows in np.array_split(rng.permutation(len(masks)), math.ceil(len(masks) / _BATCH)):
                places, labels = _draw([masks[i] for i in rows], config.pixels, rng)
                loss = _loss(heads(tokens[rows].to(device)), places.to(device), labels.to(device))
                gradients = torch.autograd.grad(loss, (weight, bias))
                with torch.no_grad():
                    for p, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
                        speed.mul_(_MOMENTUM).add_(gradient)
                        p.sub_(step_sizes.reshape(-1, *[1] * (p.ndim - 1)) * speed)
            if progress:
                progress(epoch + 1, config.epochs)
    return _Heads(weight.detach(), bias.detach(), heads.mean, heads.deviation)


def _statistics(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation (D,) over images and patches; a constant column has deviation 1."""
    count = tokens[:, 0].numel()
    mean = torch.stack([part.float().sum((0, 2, 3)) for part in tokens.split(_BATCH)]).sum(0) / count
    parts = [(part.float() - mean[:, None, None]).square().sum((0, 2, 3)) for part in tokens.split(_BATCH)]
    deviation = (torch.stack(parts).sum(0) / count).sqrt()
    return mean, torch.where(deviation > 1e-6, deviation, 1.0)


def _draw(masks: Sequence[Mask], pixels: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """P random pixels of each mask: places (b, P, 2) as (x, y) in [-1, 1] across the image, and labels (b, P)."""
    places, labels = [], []
    for mask in masks:
        rows, columns = (rng.integers(0, side, pixels) for side in mask.shape)
        places.append(np.stack([(2 * columns + 1) / mask.shape[1] - 1, (2 * rows + 1) / mask.shape[0] - 1], axis=1))
        labels.append(mask[rows, columns].astype(np.int64))
    return torch.from_numpy(np.stack(places)).float(), torch.from_numpy(np.stack(labels))


def _loss(logits: Tensor, places: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the pixels that are not IGNORED, summed over rates; logits (b, G, C, h, w)."""
    rates, classes = logits.shape[1:3]
    # border: beyond the outermost patch centres the value stays, as `interpolate` has it
    at = F.grid_sample(logits.flatten(1, 2), places[:, None], padding_mode="border", align_corners=False)
    at = at.reshape(len(logits), rates, classes, -1).movedim(2, 1)
    labels = labels[:, None].expand(-1, rates, -1)
    known = (labels[:, 0] != IGNORED).sum().clamp(min=1)
    return F.cross_entropy(at, labels, ignore_index=IGNORED, reduction="sum") / known


def _records(study: Study, counts: Counts, names: Sequence[str], details: dict[str, Any]) -> list[Record]:
    scope, n = study.scope, len(counts)
    found = class_iou(counts.sum(0))
    occurring = np.flatnonzero(~np.isnan(found))
    if not len(occurring):
        raise UserError(f"the test masks of {scope.data} are {IGNORED} everywhere; expected class numbers")
    rng = counted_generator(scope.seed, "segmentation bootstrap")
    times = rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)
    resampled = class_iou((times @ counts.reshape(n, -1)).reshape(_RESAMPLES, len(names), 3))

    def record(metric: str, value: float, values: Floats, images: int, details: dict[str, Any]) -> Record:
        low, high = (float(100 * edge) for edge in np.percentile(values, (2.5, 97.5)))
        known = images > 1  # one image tells nothing of others
        return Record(
            "segmentation", metric, 100 * value, images, scope.subject, scope.data, scope.seed, scope.checkpoint,
            unit="%", low=low if known else None, high=high if known else None, details=details,
        )  # fmt: skip

    means = np.array([_mean(iou) for iou in resampled if not np.isnan(iou).all()])
    records = [record("miou", _mean(found), means, n, details)]
    for c in occurring.tolist():
        values, images = resampled[:, c], int((counts[:, c, 1] > 0).sum())
        records.append(record("iou", float(found[c]), values[~np.isnan(values)], images, {"class": names[c]}))
    return records
