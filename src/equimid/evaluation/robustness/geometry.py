"""Accuracy under poses: quarter turns, the flip, other scales, and any angle.

Quarter turns and the flip move pixels and change none. Scales resize to the grids that equivariance is measured on. For
the curve over angles the image is turned about its centre, counter-clockwise, and all that lies outside its inscribed
disc is set to the mean colour, at every angle alike, also at 0: so no angle shows corners that another lacks. Between
multiples of 90 degrees turning resamples, which blurs a little; the records say where.
"""

from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.data import Source
from equimid.distributed import gather_in_order, rank, world_size
from equimid.evaluation.equivariance.transforms import poses_for
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.linear import Classifier, fit_linear
from equimid.evaluation.study import Study, labelled_splits, sample_images
from equimid.records import Record

__all__ = ["inscribed_disc", "measure_geometry", "rotate"]

_BATCH = 64


def inscribed_disc(size: int) -> Tensor:
    """(S, S) bool: pixels within (S - 1) / 2 of the image's centre; turned, each still lies within its pixels."""
    offset = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return offset[:, None] ** 2 + offset[None, :] ** 2 <= ((size - 1) / 2) ** 2 + 1e-9


def rotate(images: Tensor, degrees: float, interpolation: str = "bicubic") -> Tensor:
    """Images (b, C, S, S) turned counter-clockwise about their centre.

    Multiples of 90 degrees move pixels (`torch.rot90`), others resample; what no pixel of the image lies under is
    filled with the nearest one.
    """
    quarters = round(degrees / 90)
    rest = degrees - 90 * quarters
    turned = torch.rot90(images, quarters, (-2, -1))
    if rest == 0:
        return turned
    angle = np.deg2rad(rest)
    # where a place of the result comes from: it turned back; rows count downwards
    matrix = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]
    theta = torch.tensor(matrix, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=True)
    return F.grid_sample(turned, grid, interpolation, padding_mode="border", align_corners=True)


def measure_geometry(study: Study, data: str, train: str | None = None) -> list[Record]:
    """Top-1 upright, under every pose of every kind, and over the angles of `robustness.angles`.

    Raises:
        UserError: no labels, or classes of training and test images that do not match.
    """
    fit, test = labelled_splits(data, train)
    return geometry_records(fit_linear(study, fit), test)


@torch.inference_mode()
def geometry_records(classifier: Classifier, test: Source) -> list[Record]:
    """The records of `measure_geometry`, of at most `robustness.images` test images."""
    study = classifier.study
    config, interpolation = study.config.robustness, study.config.equivariance.interpolation
    indices = sample_images(test, config.images, study.scope.seed)
    mine = np.arange(rank(), len(indices), world_size())
    poses = poses_for(study.encoder, study.preprocessing.size // study.encoder.patch_size, "accuracy")
    classes: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    batches = study.batches(test, _BATCH, indices[mine])
    for images in study.track(batches, "geometry", len(indices), lambda images: len(images) * world_size()):
        for pose in poses:
            posed = pose.of(len(images)).act(images, study.encoder.patch_size, interpolation)
            classes[pose.kind, pose.name].append(predicted(classifier.logits(posed)))
        disc = inscribed_disc(images.shape[-1]).to(images.device)
        for angle in config.angles:
            turned = rotate(images, angle, interpolation) * disc
            classes["angle", f"{angle} degrees"].append(predicted(classifier.logits(turned)))
    assert test.labels is not None
    labels = test.labels[indices]
    angles = {f"{angle} degrees": angle for angle in config.angles}
    records = []
    for kind, pose_name in [*((pose.kind, pose.name) for pose in poses), *(("angle", name) for name in angles)]:
        own = torch.cat([torch.zeros(0, dtype=torch.int64), *classes[kind, pose_name]])
        correct = gather_in_order(own, torch.from_numpy(mine), study.device).numpy() == labels
        details: dict[str, object] = {"kind": kind, "pose": pose_name}
        if kind == "angle":
            resampled = angles[pose_name] % 90 != 0
            details |= {"angle": angles[pose_name], "disc": True, "interpolation": interpolation if resampled else None}
        records.append(study.scope.accuracy("geometry", correct, details))
    return records
