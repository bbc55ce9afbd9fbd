"""Training of the detector and its use; the network below it stays as it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.evaluation.config import DetectionConfig
from equimid.evaluation.detection.annotations import DetectionSet
from equimid.evaluation.detection.pyramid import Detector
from equimid.evaluation.detection.tokens import Canvas, View, token_batches
from equimid.evaluation.study import Study
from equimid.randomness import counted_generator, counted_torch_seed
from equimid.schedules import cosine

__all__ = ["Detections", "build_detector", "detect", "train_detector"]

_WARM_UP = 0.1  # fraction of the steps
_STANDARDISED = 64  # images whose tokens say how tokens lie
_CLIP = 1.0  # norm of the gradient


@dataclass(frozen=True)
class Detections:
    """The detections in one image, best first.

    Attributes:
        boxes:  (k, 4) xyxy, pixels of the image
        labels: (k,) indices into the classes
        scores: (k,) in [0, 1]
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]


def build_detector(study: Study, images: DetectionSet, canvas: Canvas) -> Detector:
    """Untrained, a function of the seed, for tokens like those of these images."""
    config, seed = study.config.detection, study.scope.seed
    with counted_torch_seed(seed, "detection start"):
        detector = Detector(study.encoder.embed_dim, len(images.classes), config.width, config.proposals, config.anchor)
    detector.to(study.device)
    some = counted_generator(seed, "detection tokens").permutation(len(images))[:_STANDARDISED].tolist()
    batches = [[(i, False) for i in some[at : at + 16]] for at in range(0, len(some), 16)]
    detector.standardise(torch.cat(list(token_batches(study, images, canvas, batches))))
    return detector


def train_detector(study: Study, detector: Detector, images: DetectionSet, canvas: Canvas) -> list[float]:
    """AdamW with a linear warm-up and a cosine, on images of which each is flipped half of the time. A function of the
    seed (on a GPU up to the order in which torchvision's pooling adds up gradients).

    Returns:
        The loss of every step.

    Raises:
        UserError: it diverged.
    """
    config, seed = study.config.detection, study.scope.seed
    optimizer = torch.optim.AdamW(_decayed(detector, config.weight_decay), lr=config.rate)
    batches = _order(len(images), config, seed)
    losses: list[float] = []
    steps = zip(batches, token_batches(study, images, canvas, batches), strict=True)
    for step, (batch, tokens) in enumerate(study.track(steps, "detection", config.steps)):
        targets = [_targets(images, canvas, *view, study.device) for view in batch]
        # torchvision draws the regions that it trains on from the global generator
        with counted_torch_seed(seed, "detection regions", step):
            sizes, boxes, labels = zip(*targets, strict=True)
            loss = detector.losses(tokens, sizes, boxes, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), _CLIP)
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _rate_factor(step, config.steps)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise UserError(
                f"detection diverged at step {step + 1}: its loss is {losses[-1]}; lower evaluation.detection.rate "
                f"({config.rate:g})"
            )
        optimizer.step()
    return losses


def detect(study: Study, detector: Detector, images: DetectionSet, canvas: Canvas) -> list[Detections]:
    """What the detector finds in every image, in order."""
    batch = study.config.detection.batch_size
    batches = [[(i, False) for i in range(at, min(at + batch, len(images)))] for at in range(0, len(images), batch)]
    detections: list[Detections] = []
    for chosen, tokens in zip(batches, token_batches(study, images, canvas, batches), strict=True):
        scales = [canvas.scale(images.sizes[i]) for i, _ in chosen]
        for each, (factors, _) in zip(detector.detect(tokens, [size for _, size in scales]), scales, strict=True):
            x, y, s = (each[key].cpu().numpy() for key in ("boxes", "labels", "scores"))
            detections.append(Detections(x.astype(np.float64) / factors, y, s.astype(np.float64)))
    return detections


def _order(count: int, config: DetectionConfig, seed: int) -> list[list[View]]:
    """Which images each step sees, and which of them flipped: epochs in random order, joined."""
    total = config.steps * config.batch_size

    views: list[View] = []
    for epoch in range(math.ceil(total / count)):
        rng = counted_generator(seed, "detection order", epoch)
        views += zip(rng.permutation(count).tolist(), (rng.random(count) < 0.5).tolist(), strict=True)
    return [views[at : at + config.batch_size] for at in range(0, total, config.batch_size)]


def _targets(
    images: DetectionSet, canvas: Canvas, index: int, flip: bool, device: torch.device
) -> tuple[tuple[float, float], Tensor, Tensor]:
    """Size, boxes and labels of an image in the detector's frame, without those that are ignored."""
    factors, size = canvas.scale(images.sizes[index])
    kept = ~images.ignored[index]
    boxes = images.boxes[index][kept] * factors
    if flip:
        boxes = np.stack([size[1] - boxes[:, 2], boxes[:, 1], size[1] - boxes[:, 0], boxes[:, 3]], axis=1)
    labels = torch.from_numpy(images.labels[index][kept])
    return size, torch.from_numpy(boxes).float().to(device), labels.to(device)


def _rate_factor(step: int, steps: int) -> float:
    """What multiplies the peak rate at that step."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return cosine(step - warm, max(1, steps - warm), 1.0, 0.0)


def _decayed(detector: Detector, decay: float) -> list[dict[str, object]]:
    """Weights decay; biases and norms do not."""
    weights: Sequence[Tensor] = [p for p in detector.parameters() if p.ndim > 1]
    others: Sequence[Tensor] = [p for p in detector.parameters() if p.ndim <= 1]
    return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
