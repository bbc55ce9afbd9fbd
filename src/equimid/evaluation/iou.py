"""Intersection over union of predicted and true masks: counted image by image, with intervals by a bootstrap over
images, upright and under poses.

Letters: n images, C classes, h w patches, H W pixels of a mask, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.errors import UserError
from equimid.evaluation.equivariance.transforms import NamedPose
from equimid.evaluation.masks import IGNORED
from equimid.evaluation.study import Scope
from equimid.randomness import counted_generator
from equimid.records import Record

__all__ = ["Counts", "Mask", "class_iou", "iou_records", "mean_iou", "pixel_counts", "posed_iou_records"]

_RESAMPLES = 1000

Mask = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def pixel_counts(logits: Tensor, mask: Mask) -> Counts:
    """Of one image, (C, 3): for each class the pixels where prediction and mask have it, those of the mask, those of
    the prediction; none where the mask is IGNORED. Logits (C, h, w) are interpolated to the mask (H, W)."""
    classes = len(logits)
    with torch.no_grad():
        fine = F.interpolate(logits[None], mask.shape, mode="bilinear", align_corners=False)[0]
        # a layer that diverged predicts a class that there is not; max is several times as fast as argmax, and also
        # takes the first of equal values
        predicted = fine.max(0).indices.masked_fill(fine.isnan().any(0), classes).cpu().numpy()
    known = mask != IGNORED
    truth, prediction = mask[known].astype(np.int64), predicted[known]
    columns = (truth[truth == prediction], truth, prediction)
    return np.stack([np.bincount(column, minlength=classes + 1)[:classes] for column in columns], axis=1)


def class_iou(counts: npt.NDArray[Any]) -> Floats:
    """Intersection over union (..., C) of counts (..., C, 3) summed over images; NaN for a class that no mask has."""
    both, truth, prediction = np.moveaxis(counts.astype(np.float64), -1, 0)
    iou: Floats = np.divide(both, truth + prediction - both, out=np.full(both.shape, np.nan), where=truth > 0)
    return iou


def mean_iou(iou: Floats) -> float:
    """Over the classes that occur; 0 where none does."""
    return float(np.nanmean(iou)) if not np.isnan(iou).all() else 0.0


def iou_records(scope: Scope, counts: Counts, names: Sequence[str], details: dict[str, Any]) -> list[Record]:
    """Mean IoU and that of each class, of counts (n, C, 3).

    Raises:
        UserError: no mask says anything.
    """
    of_classes = class_iou(counts.sum(0))
    occurring = np.flatnonzero(~np.isnan(of_classes))
    if not len(occurring):
        raise UserError(f"the test masks of {scope.data} are {IGNORED} everywhere; expected class numbers")
    resampled = _resampled(_times(scope, len(counts)), counts)
    records = [_record(scope, "miou", mean_iou(of_classes), _means(resampled), len(counts), details)]
    for c in occurring.tolist():
        values, images = resampled[:, c], int((counts[:, c, 1] > 0).sum())
        values = values[~np.isnan(values)]
        records.append(_record(scope, "iou", float(of_classes[c]), values, images, {"class": names[c]}))
    return records


def posed_iou_records(scope: Scope, upright: Counts, posed: Mapping[NamedPose, Counts]) -> list[Record]:
    """Mean IoU under each pose, and for each kind of pose the drop: upright less the mean over the kind's poses.

    Args:
        upright, posed: counts (n, C, 3) of the same images. All are resampled alike, so that the drop's interval is
            that of a paired difference.
    """
    times, n = _times(scope, len(upright)), len(upright)
    if np.isnan(class_iou(upright.sum(0))).all():
        return []  # these few images have no class
    whole, means = mean_iou(class_iou(upright.sum(0))), _means(_resampled(times, upright))
    kinds: dict[str, list[tuple[float, Floats]]] = {}
    records = []
    for pose, counts in posed.items():
        mean_and_draws = mean_iou(class_iou(counts.sum(0))), _means(_resampled(times, counts))
        kinds.setdefault(pose.kind, []).append(mean_and_draws)
        records.append(_record(scope, "miou_posed", *mean_and_draws, n, {"kind": pose.kind, "pose": pose.name}))
    for kind, of in kinds.items():
        drop = whole - float(np.mean([value for value, _ in of]))
        drops = means - np.mean([values for _, values in of], axis=0)
        details = {"kind": kind, "poses": len(of), "upright": 100 * whole}
        records.append(_record(scope, "miou_drop", drop, drops, n, details))
    return records


def _times(scope: Scope, n: int) -> Floats:
    """How often each resample has each image, (R, n)."""
    rng = counted_generator(scope.seed, "segmentation bootstrap")
    return rng.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES).astype(np.float64)


def _resampled(times: Floats, counts: Counts) -> Floats:
    """IoU (R, C) of each resample."""
    return class_iou((times @ counts.reshape(len(counts), -1)).reshape(len(times), *counts.shape[1:]))


def _means(resampled: Floats) -> Floats:
    """Mean IoU of the resamples that have a class: which these are, the true masks say, whatever the prediction."""
    return np.array([mean_iou(iou) for iou in resampled if not np.isnan(iou).all()])


def _record(scope: Scope, metric: str, value: float, values: Floats, images: int, details: dict[str, Any]) -> Record:
    low, high = (float(100 * edge) for edge in np.percentile(values, (2.5, 97.5)))
    known = images > 1  # one image tells nothing of others
    return scope.record(
        "segmentation",
        metric,
        100 * value,
        images,
        unit="%",
        low=low if known else None,
        high=high if known else None,
        details=details,
    )
