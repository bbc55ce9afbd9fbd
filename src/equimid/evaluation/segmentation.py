"""Linear segmentation: one linear layer on the frozen tokens of the last block, its logits brought to the mask's pixels
by bilinear interpolation (the linear setting of DINOv2, Oquab et al. 2024, section 7.4).

Letters: n images, C classes, D width, h w patches, G learning rates, b images and P pixels of a step.

A linear layer and a linear interpolation commute, so that a step needs the logits only at the pixels that it draws:
cross entropy at P random pixels of each image has the gradient of all its pixels on average.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from equimid.errors import UserError
from equimid.evaluation.equivariance.transforms import UPRIGHT, NamedPose, poses_for
from equimid.evaluation.iou import Counts, Mask, class_iou, iou_records, mean_iou, pixel_counts, posed_iou_records
from equimid.evaluation.masks import IGNORED, MaskedImages, open_masks
from equimid.evaluation.preprocessing import Preprocessing, image_batches
from equimid.evaluation.probes.heads import cosine, warn_at_grid_edge
from equimid.evaluation.study import Study, sample_images
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["measure_segmentation"]

_MOMENTUM = 0.9
_BATCH = 16


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
    of them; nothing is chosen on the test images.

    Then the same layer, which was trained upright, on test images in other poses: mean IoU under each pose, and for
    each kind of pose how much of the upright one is lost (see `_posed_counts`).

    Raises:
        UserError: images without a mask; a mask that is no class numbers, of another size than its image or with a
            class beyond those named; fewer than two training images or classes; a size that does not suit.
    """
    fit, test, names = open_masks(data, train)
    config, seed = study.config.segmentation, study.scope.seed
    fit = fit.take(np.sort(counted_generator(seed, "segmentation images").permutation(len(fit))[: config.images]))
    needed = max(fit.classes(names), test.classes(names))
    classes = len(names) or needed
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
    logits = _logits(study, heads, _tokens(study, test, preprocessing))
    counts = np.stack([pixel_counts(each, test.mask(i)) for i, each in enumerate(logits)])
    details |= {"size": preprocessing.size, "training_images": len(fit)}
    records = iou_records(study.scope, counts, names, details)
    chosen = np.sort(sample_images(test.source, study.config.robustness.images, seed))
    posed = _posed_counts(study, heads, test.take(chosen), preprocessing)
    return records + posed_iou_records(study.scope, counts[chosen], posed)


def _posed_counts(
    study: Study, heads: _Heads, images: MaskedImages, preprocessing: Preprocessing
) -> dict[NamedPose, Counts]:
    """`pixel_counts` (n, C, 3) of images shown in each pose but upright.

    The square that the network is shown upright is posed. Its logits are brought back by the inverse turn and flip, and
    are then compared with the mask at the mask's own pixels, as upright: so the true pixels are the same in every pose,
    and no mask is resampled. Turns and flips permute pixels and logits, so this is to turn the mask with its image.
    """
    patch_size, interpolation = study.encoder.patch_size, study.config.equivariance.interpolation
    poses = [p for p in poses_for(study.encoder, preprocessing.size // patch_size, "segmentation") if p.kind != UPRIGHT]
    counts: dict[NamedPose, list[Counts]] = {pose: [] for pose in poses}
    batches = image_batches(images.source, preprocessing, batch_size=_BATCH, workers=study.workers)
    masks = map(images.mask, range(len(images)))
    for x in study.track(batches, "segmentation in other poses", len(images), len):
        of_batch = list(islice(masks, len(x)))
        for pose in poses:
            tokens = study.tokens(pose.of(len(x)).act(x.to(study.device), patch_size, interpolation)).cpu()
            for logits, mask in zip(_logits(study, heads, [tokens]), of_batch, strict=True):
                upright = (~pose.of(1)).act(logits[None])[0]
                counts[pose].append(pixel_counts(upright, mask))
    return {pose: np.stack(of_pose) for pose, of_pose in counts.items()}


def _logits(study: Study, heads: _Heads, tokens: Iterable[Tensor]) -> Iterator[Tensor]:
    """Logits (C, h, w) of the first layer of `heads`, image by image, of batches of tokens (b, D, h, w)."""
    for part in tokens:
        for one in part.split(1):
            yield heads(one.to(study.device))[0, 0]


def _preprocessing(study: Study) -> Preprocessing:
    own, patch_size = study.preprocessing, study.encoder.patch_size
    size = study.config.segmentation.size or own.size
    if size % patch_size:
        near = max(patch_size, round(size / patch_size) * patch_size)
        raise UserError(
            f"evaluation.segmentation.size is {size}, not a multiple of the {patch_size} px patch; try {near}"
        )
    return _WholeImage(size, 1.0, own.mean, own.std)


def _tokens(study: Study, images: MaskedImages, preprocessing: Preprocessing) -> Iterator[Tensor]:
    """Tokens (b, D, h, w) after the final norm, batch by batch, on the CPU."""
    batches = image_batches(images.source, preprocessing, batch_size=_BATCH, workers=study.workers)
    for x in study.track(batches, "tokens", len(images), len):
        try:
            tokens = study.tokens(x).cpu()
        except (AssertionError, ValueError) as error:
            if preprocessing.size == study.preprocessing.size or isinstance(error, UserError):
                raise
            raise UserError(
                f"the network takes no images of {preprocessing.size} px ({error}); leave "
                "evaluation.segmentation.size at 0"
            ) from None
        yield tokens


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
    values = [100 * mean_iou(iou) for iou in class_iou(total)]
    best = int(np.argmax(values))
    details: dict[str, Any] = {
        "rate": rates[best], "held_out_miou": values[best], "epochs": study.config.segmentation.epochs,
        **warn_at_grid_edge(rates[best], rates),
    }  # fmt: skip
    return rates[best], details


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
    for epoch in study.track(range(config.epochs), "segmentation", config.epochs):
        step_sizes = peak * cosine(epoch, config.epochs)
        for rows in np.array_split(rng.permutation(len(masks)), math.ceil(len(masks) / _BATCH)):
            places, labels = _draw([masks[i] for i in rows], config.pixels, rng)
            loss = _loss(heads(tokens[rows].to(device)), places.to(device), labels.to(device))
            gradients = torch.autograd.grad(loss, (weight, bias))
            with torch.no_grad():
                for p, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
                    speed.mul_(_MOMENTUM).add_(gradient)
                    p.sub_(step_sizes.reshape(-1, *[1] * (p.ndim - 1)) * speed)
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
