"""Turn uint8 batches into views on the device: photometric changes, normalisation, poses."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from equimid.poses import Pose, sample_pose_pair
from equimid.randomness import counted_generator
from equimid.views.batch import Batch, ViewBatch
from equimid.views.config import Photometric
from equimid.views.photometric import apply
from equimid.views.plan import CentreView, CropView, ViewPlan

__all__ = ["Views", "normalise", "sample_poses", "to_device_views"]


class Views:
    """What a task sees of this rank's images.

    Not a dataclass: engines rebuild the dataclasses that they are handed, tensor by tensor.

    Attributes:
        crops: of each standard view, (b1, 3, S, S).
        posed: of each posed view, (b2, 3, h, w); empty without posed views.
        poses: of each posed view, b2 poses.
        image_ids: (b2,) of the posed images, unique over ranks.
        extra: {name: of each turn (b1, 3, S, S)} of the plan's extra views.
        batch: as it left the workers, with boxes and photometric parameters; None for views made by hand.
    """

    def __init__(
        self,
        crops: list[Tensor],
        posed: Sequence[Tensor] = (),
        poses: Sequence[Pose] = (),
        image_ids: Tensor | None = None,
        extra: Mapping[str, list[Tensor]] | None = None,
        batch: Batch | None = None,
    ) -> None:
        self.crops, self.posed, self.poses = crops, list(posed), list(poses)
        self.image_ids = torch.zeros(0, dtype=torch.int64) if image_ids is None else image_ids
        self.extra, self.batch = dict(extra or {}), batch


def sample_poses(plan: ViewPlan, seed: int, step: int, rank: int, ranks: int) -> list[Pose]:
    """Draw this rank's poses of every posed view in a step. All ranks share one draw, whatever their number."""
    posed = plan.posed
    if posed is None:
        return []
    rng = counted_generator(seed, "pose", step)
    poses: list[Pose] = []
    for size in posed.sizes[::2]:
        grid = (size // posed.patch_size, size // posed.patch_size)
        poses += sample_pose_pair(
            posed.count, grid, rng, area=posed.area, aspect=posed.aspect, complement=posed.complement, grids=posed.grids
        )
    mine = plan.positions(posed.count, rank, ranks)
    return [pose[mine] for pose in poses[: len(posed.sizes)]]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Shift and scale images (n, 3, H, W) in [0, 1] by the mean and deviation of each channel."""
    m, s = (
        torch.tensor(v, dtype=images.dtype).to(images.device, non_blocking=True)[:, None, None] for v in (mean, std)
    )
    return (images - m) / s


@torch.no_grad()
def to_device_views(batch: Batch, plan: ViewPlan, poses: Sequence[Pose], device: torch.device) -> Views:
    """Make the views of a batch on the device.

    Args:
        poses: per posed view, one pose per posed image of this rank (`sample_poses`).

    Raises:
        ValueError: files of the batch are not decoded yet.
    """
    if batch.files is not None:
        raise ValueError(f"{len(batch.encoded)} files of the batch are encoded; call decode_encoded on it first")

    def finish(view: ViewBatch, photometric: Photometric | None) -> Tensor:
        images = view.pixels.to(device, non_blocking=True).contiguous().float().div_(255)
        return normalise(apply(images, view.photometric, photometric) if photometric else images, plan.mean, plan.std)

    def no_images(size: int) -> Tensor:
        return torch.zeros(0, 3, size, size, device=device)

    planned: list[CropView | CentreView] = [*plan.crops, *(extra.view for extra in plan.extra.values())]
    if batch.crops:
        cropped = [
            finish(view, kind.photometric if isinstance(kind, CropView) else None)
            for view, kind in zip(batch.crops, planned, strict=True)
        ]
    else:
        cropped = [no_images(kind.size) for kind in planned]
    crops, others = cropped[: len(plan.crops)], cropped[len(plan.crops) :]
    extra = {
        name: [torch.rot90(images, turn, (2, 3)) for turn in range(view.turns)]
        for (name, view), images in zip(plan.extra.items(), others, strict=True)
    }
    if plan.posed is None:
        return Views(crops, image_ids=torch.zeros(0, dtype=torch.int64, device=device), extra=extra, batch=batch)
    on_device = [pose.to(device) for pose in poses]
    if batch.posed:
        upright = [finish(view, kind.photometric) for view, kind in zip(batch.posed, plan.crops, strict=True)]
    else:
        upright = [no_images(size) for size in plan.posed.sizes]
    ids = batch.indices[len(batch.indices) - len(upright[0]) :]
    posed = [pose.act(x, plan.posed.patch_size) for pose, x in zip(on_device, upright, strict=True)]
    return Views(crops, posed, on_device, ids.to(device, non_blocking=True), extra, batch)
