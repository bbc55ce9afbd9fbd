"""SER, Soft Equivariance Regularization (ICLR 2026, arXiv 2603.06693).

Two posed views of some images of the batch (no crop: the pose is the only geometry). F_v is the token map of view v
after block k, phi two 1x1 convolutions, rho the known action of the pose on the patch grid:

    L_eq = patch_ntxent( phi F_0 , rho_{1->0} phi F_1 ),  and the same with the views exchanged, averaged.

With a momentum network the transported side is its map, through the student's phi, without gradient. No
transformation is predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.heads import patch_projector
from equimid.losses import patch_ntxent, patch_ntxent_cross_view
from equimid.poses import Pose, transport
from equimid.views import PosedViews

__all__ = ["SER", "SERConfig", "ser_loss"]

Maps = Mapping[int, Tensor]
_FORMS = {"canonical": patch_ntxent, "cross_view": patch_ntxent_cross_view}


@dataclass(frozen=True)
class SERConfig:
    """
    weight:      lambda, of L_eq beside the base loss; 0 keeps the views and trains nothing with them
    temperature: tau of L_eq (the paper: 0.3 with MoCo-v3 and Barlow Twins, 0.5 with DINO)
    layers:      blocks after which the map is regularised, each with its own phi; their losses are averaged
    share:       r, of the batch that is posed instead of cropped; at least two images
    hidden:      width of phi
    area:        range of a posed grid's area, as a share of the image's
    aspect:      range of its height / width
    complement:  the release's draw, in which every relative pose is a reflection
    source:      "resize" the whole image, or the release's "shared_crop"
    form:        "canonical" (the paper) or "cross_view" (the release: negatives in the other view only)
    """

    weight: float = 1.0
    temperature: float = 0.3
    layers: tuple[int, ...] = (3,)
    share: float = 0.02
    hidden: int = 512
    area: tuple[float, float] = (0.7, 1.3)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    complement: bool = False
    source: Literal["resize", "shared_crop"] = "resize"
    form: Literal["canonical", "cross_view"] = "canonical"

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise UserError(f"ser.weight is {self.weight}; it must be 0 or more")
        if self.temperature <= 0:
            raise UserError(f"ser.temperature is {self.temperature}; it must be positive")
        if not 0 < self.share <= 1:
            raise UserError(f"ser.share is {self.share}; it must lie in (0, 1] (ser=null trains without SER)")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise UserError(f"ser.layers is {list(self.layers)}; name at least one layer, each once")
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise UserError(f"ser.{name} is {[low, high]}; it must be a range of positive numbers [low, high]")

    def posed_views(self, batch_size: int, image_size: int, patch_size: int) -> PosedViews:
        """The views that SER needs of every batch.

        Raises:
            UserError: the batch cannot hold two posed images.
        """
        if batch_size < 2:
            raise UserError(
                f"SER needs at least two posed images in a batch, for negatives; the batch has {batch_size}: "
                "raise train.batch_size or lower train.accumulate"
            )
        return PosedViews(
            count=max(2, round(self.share * batch_size)),
            size=image_size,
            patch_size=patch_size,
            area=self.area,
            aspect=self.aspect,
            complement=self.complement,
            shared_crop=self.source == "shared_crop",
        )


class SER(nn.Module):
    """phi for every regularised layer, and L_eq."""

    def __init__(self, config: SERConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.projectors = nn.ModuleDict({str(layer): patch_projector(width, config.hidden) for layer in config.layers})

    def forward(
        self, student: Sequence[Maps], momentum: Sequence[Maps], poses: Sequence[Pose], image_ids: Tensor
    ) -> Tensor:
        """L_eq, the mean over layers.

        Args:
            student: per posed view, {layer: (n, D, *grid)} of the student.
            momentum: the same of the momentum network; empty without one.
            poses: per posed view, the n poses.
            image_ids: (n,), unique over ranks.
        """
        losses = [
            ser_loss(
                self.projectors[str(layer)],
                [maps[layer] for maps in student],
                [maps[layer] for maps in momentum],
                poses,
                image_ids,
                self.config.temperature,
                self.config.form,
            )
            for layer in self.config.layers
        ]
        return torch.stack(losses).mean()


def ser_loss(
    projector: nn.Module,
    maps: Sequence[Tensor],
    momentum_maps: Sequence[Tensor],
    poses: Sequence[Pose],
    image_ids: Tensor,
    temperature: float,
    form: Literal["canonical", "cross_view"] = "canonical",
) -> Tensor:
    """L_eq of one layer's maps: (n, D, *poses[v].grid) per posed view v.

    Without momentum maps both sides are the student's, and one direction holds every pair. Returns a scalar; see
    `equimid.losses.patch_ntxent` for its meaning over ranks.
    """
    if form not in _FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(_FORMS)}")
    patch_loss = _FORMS[form]
    student = [projector(x) for x in maps]
    if momentum_maps:
        with torch.no_grad():
            other = [projector(x) for x in momentum_maps]
        directions = [(0, 1), (1, 0)]
    else:
        other, directions = student, [(0, 1)] if form == "canonical" else [(0, 1), (1, 0)]
    losses = []
    for here, there in directions:
        ids = image_ids.repeat_interleave(poses[here].grid[0] * poses[here].grid[1])
        carried = transport(other[there], poses[there], poses[here])
        losses.append(patch_loss(_rows(student[here]), _rows(carried), ids, temperature))
    return torch.stack(losses).mean()


def _rows(maps: Tensor) -> Tensor:
    """(n, D, h, w) to (n h w, D), image-major."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)
