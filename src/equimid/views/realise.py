"""The device's side of the views: uint8 batches to normalised, photometrically changed, posed images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from equimid.poses import Pose, sample_pose_pair
from equimid.randomness import counted_generator
from equimid.views.photometric import Photometric, apply
from equimid.views.plan import PosedViews, ViewPlan
from equimid.views.worker import Batch

__all__ = ["Views", "normalise", "realise", "sample_poses"]


class Views:
    """What a task sees of this rank's images.

    crops:     per standard view, (b1, 3, S, S)
    posed:     per posed view, (b2, 3, h, w); empty without posed views
    poses:     per posed view, b2 poses
    image_ids: (b2,) of the posed images, unique over ranks
    batch:     as it left the workers, with crop boxes and photometric parameters; None for views made by hand

    No dataclass: engines rebuild the ones that they are handed, tensor by tensor.
    """

    def __init__(
        self,
        crops: list[Tensor],
        posed: list[Tensor],
        poses: list[Pose],
        image_ids: Tensor,
        batch: Batch | None = None,
    ) -> None:
        self.crops, self.posed, self.poses, self.image_ids, self.batch = crops, posed, poses, image_ids, batch


def sample_poses(posed: PosedViews, seed: int, step: int, rank: int, ranks: int) -> list[Pose]:
    """This rank's poses of both views in a step; over all ranks the same draw, whatever their number."""
    side = posed.size // posed.patch_size
    pair = sample_pose_pair(
        posed.count,
        (side, side),
        counted_generator(seed, "pose", step),
        area=posed.area,
        aspect=posed.aspect,
        complement=posed.complement,
    )
    return [pose[rank::ranks] for pose in pair]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(n, 3, H, W) in [0, 1] to zero mean and unit deviation per channel."""
    m, s = (torch.tensor(v, device=images.device, dtype=images.dtype)[:, None, None] for v in (mean, std))
    return (images - m) / s


@torch.no_grad()
def realise(batch: Batch, plan: ViewPlan, poses: Sequence[Pose], device: torch.device) -> Views:
    """Finish the views of a batch on the device.

    Args:
        poses: per posed view, one pose per posed image of this rank (`sample_poses`).
    """

    def finish(pixels: Tensor, rows: Tensor, photometric: Photometric) -> Tensor:
        images = pixels.to(device, non_blocking=True).float().div_(255)
        return normalise(apply(images, rows, photometric), plan.mean, plan.std)

    empty = torch.zeros(0, 3, plan.crops[0].size, plan.crops[0].size, device=device)
    crops = [
        finish(pixels, rows, view.photometric)
        for view, pixels, rows in zip(plan.crops, batch.crops, batch.crop_rows, strict=True)
    ] if batch.crops else [empty for _ in plan.crops]  # fmt: skip
    if plan.posed is None:
        return Views(crops, [], [], torch.zeros(0, dtype=torch.int64, device=device), batch)
    on_device = [pose.to(device) for pose in poses]
    if batch.squares is None:
        upright = [torch.zeros(0, 3, plan.posed.size, plan.posed.size, device=device)] * len(poses)
        ids = batch.indices[:0]
    else:
        views = zip(batch.square_rows, plan.crops, strict=False)
        upright = [finish(batch.squares, rows, view.photometric) for rows, view in views]
        ids = batch.indices[-len(batch.squares) :]
    posed = [pose.act(x, plan.posed.patch_size) for pose, x in zip(on_device, upright, strict=True)]
    return Views(crops, posed, on_device, ids.to(device), batch)
