"""SER, Soft Equivariance Regularization (ICLR 2026, arXiv 2603.06693).

Two posed views of some images of the batch (no crop: the pose is the only geometry). F_v is the token map of view v
after block k, phi two 1x1 convolutions, rho the known action of the pose on the patch grid:

    L_eq = patch_ntxent( phi F_0 , rho_{1->0} phi F_1 ),  and the same with the views exchanged, averaged.

With more than two standard views there is one posed view for each, in pairs of one size, and L_eq is their mean. With a
momentum network the transported side is its map, through the student's phi, without gradient. No
transformation is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from equimid.addons.base import ADDONS, Addon, AddonConfig, AddonContext, StudentOutputs
from equimid.errors import UserError
from equimid.heads import patch_projector
from equimid.losses import patch_ntxent, patch_ntxent_cross_view
from equimid.poses import Pose, transport
from equimid.views import PosedViews, ViewPlan

__all__ = ["SER", "SERConfig", "ser_loss"]

_FORMS = {"canonical": patch_ntxent, "cross_view": patch_ntxent_cross_view}


@ADDONS.register
@dataclass(frozen=True)
class SERConfig(AddonConfig):
    """
    temperature: tau of L_eq (the paper: 0.3 with MoCo-v3 and Barlow Twins, 0.5 with DINO)
    layers:      blocks after which the map is regularised, each with its own phi
    layer_weights: of their losses; none given = the mean over layers
    fraction:       r, of the batch that is posed instead of cropped; at least two images
    hidden:      width of phi
    area:        range of a posed grid's area, as a fraction of the image's
    aspect:      range of its height / width
    grids:       draw the posed grids from a fixed set of so many that stands for these ranges (few shapes to compile
                 and to plan for); 0 = any grid, as the release
    complement:  the release's draw, in which every relative pose is a reflection
    source:      "resize" the whole image, or the release's "shared_crop"
    form:        "canonical" (the paper) or "cross_view" (the release: negatives in the other view only)
    negatives:   "images" (the paper: patches of other images) or "all" (patches of the same image too, so that one
                 vector repeated over the image is no optimum)
    negative_distance: with "all": patches of the same image within so many rows and columns of the partner show
                 content that overlaps with it, and are no negatives
    detached:    the release's gather: L_eq is measured and trains nothing
    """

    name: ClassVar[str] = "ser"
    reads_posed: ClassVar[bool] = True

    temperature: float = 0.3
    layers: tuple[int, ...] = (3,)
    layer_weights: tuple[float, ...] = ()
    fraction: float = 0.02
    hidden: int = 512
    area: tuple[float, float] = (0.7, 1.3)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    grids: int = 16
    complement: bool = False
    source: Literal["resize", "shared_crop"] = "resize"
    form: Literal["canonical", "cross_view"] = "canonical"
    negatives: Literal["images", "all"] = "images"
    negative_distance: int = 1
    detached: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"ser.temperature is {self.temperature}; it must be positive")
        if not 0 < self.fraction <= 1:
            raise UserError(f"ser.fraction is {self.fraction}; it must lie in (0, 1] (ser=null trains without SER)")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise UserError(f"ser.layers is {list(self.layers)}; name at least one layer, each once")
        fit = len(self.layer_weights) in (0, len(self.layers))
        if not fit or not all(0 <= weight < float("inf") for weight in self.layer_weights):
            raise UserError(
                f"ser.layer_weights is {list(self.layer_weights)} for the layers {list(self.layers)}; "
                "give one weight of 0 or more for each layer, or none"
            )
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            if not 1 / 16 <= low <= high <= 16:
                raise UserError(f"ser.{name} is {[low, high]}; it must be a range [low, high] within 1/16 to 16")
        if not 0 <= self.grids <= 1024:
            raise UserError(f"ser.grids is {self.grids}; it must be a number of grids up to 1024, or 0 for any grid")
        if self.hidden < 1:
            raise UserError(f"ser.hidden is {self.hidden}; it must be 1 or more")
        if self.negative_distance < 0:
            raise UserError(f"ser.negative_distance is {self.negative_distance}; it must be 0 or more patches")

    @property
    def taps(self) -> tuple[int, ...]:
        return self.layers

    @property
    def trains(self) -> bool:
        return not self.detached

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """One posed view for every standard one, of its size.

        Raises:
            UserError: the batch cannot hold two posed images, or the views do not pair.
        """
        if context.batch < 2:
            raise UserError(
                f"SER needs at least two posed images in a batch, for negatives; the batch has {context.batch}: "
                "raise train.batch_size or lower train.accumulate"
            )
        sizes = tuple(view.size for view in plan.crops)
        if any(a != b for a, b in zip(sizes[::2], sizes[1::2], strict=False)):
            raise UserError(
                f"SER pairs views of one size, and here they are {plan.label}; use views.full=2 with small views"
            )
        side = min(sizes) // context.patch_size
        if self.negatives == "all" and self.negative_distance >= side - 1:
            way = f"ser.negative_distance={side - 2} or less, or " if side > 1 else ""
            raise UserError(
                f"ser.negative_distance is {self.negative_distance}, and on a map of {side} x {side} patches that "
                f"leaves no patch of the same image as a negative; use {way}ser.negatives=images"
            )
        posed = PosedViews(
            count=max(2, round(self.fraction * context.batch)),
            sizes=sizes,
            patch_size=context.patch_size,
            area=self.area,
            aspect=self.aspect,
            grids=self.grids,
            complement=self.complement,
            shared_crop=self.source == "shared_crop",
        )
        return replace(plan, posed=posed)

    def build(self, embed_dim: int, plan: ViewPlan) -> "SER":
        return SER(self, embed_dim)


class SER(Addon):
    """phi for every regularised layer, and L_eq."""

    def __init__(self, config: SERConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projectors = nn.ModuleDict(
            {str(layer): patch_projector(embed_dim, config.hidden) for layer in config.layers}
        )
        self.layer_weights = config.layer_weights or (1 / len(config.layers),) * len(config.layers)
        if config.detached:
            self.requires_grad_(False)

    def forward(self, outputs: StudentOutputs) -> Tensor:
        """L_eq: the weighted sum over layers of the mean over the pairs of posed views."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.detached):
            weighted = zip(self.layer_weights, self.config.layers, strict=True)
            return torch.stack([weight * self._of_layer(layer, outputs) for weight, layer in weighted]).sum()

    def regularised_maps(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """Those of the first posed view."""
        return {f"layer_{layer}": outputs.posed[0].maps[layer] for layer in self.config.layers} if outputs.posed else {}

    def _of_layer(self, layer: int, outputs: StudentOutputs) -> Tensor:
        config, projector = self.config, self.projectors[str(layer)]
        student, momentum = ([f.maps[layer] for f in side] for side in (outputs.posed, outputs.momentum_posed))
        # a third full view has no partner: it is posed for the base objective alone
        pairs = [slice(v, v + 2) for v in range(0, len(student) - 1, 2)]
        losses = [
            ser_loss(
                projector, student[pair], momentum[pair], outputs.views.poses[pair], outputs.views.image_ids,
                config.temperature, config.form, config.negatives, config.negative_distance,
            )
            for pair in pairs
        ]  # fmt: skip
        return torch.stack(losses).mean()


def ser_loss(
    projector: nn.Module,
    maps: Sequence[Tensor],
    momentum_maps: Sequence[Tensor],
    poses: Sequence[Pose],
    image_ids: Tensor,
    temperature: float,
    form: Literal["canonical", "cross_view"] = "canonical",
    negatives: Literal["images", "all"] = "images",
    negative_distance: int = 1,
) -> Tensor:
    """L_eq of one layer's maps: (n, D, *poses[v].grid) per posed view v.

    Without momentum maps both sides are the student's, and one direction holds every pair. Returns a scalar; see
    `equimid.losses.patch_ntxent` for its meaning over ranks. `negatives` and `negative_distance` as in `SERConfig`.

    Raises:
        ValueError: a form or a kind of negatives that there is not.
    """
    if form not in _FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(_FORMS)}")
    if negatives not in ("images", "all"):
        raise ValueError(f"negatives is {negatives!r}; expected images or all")
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
        h, w = poses[here].grid
        ids = image_ids.repeat_interleave(h * w)
        carried = transport(other[there], poses[there], poses[here])
        cells = _cells(h, w, len(image_ids), ids.device) if negatives == "all" else None
        losses.append(patch_loss(_rows(student[here]), _rows(carried), ids, temperature, cells, negative_distance))
    return torch.stack(losses).mean()


def _cells(h: int, w: int, n: int, device: torch.device) -> Tensor:
    """(n h w, 2): row and column of every patch of n maps, image-major."""
    cells = torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device))
    return cells.repeat(n, 1)


def _rows(maps: Tensor) -> Tensor:
    """(n, D, h, w) to (n h w, D), image-major."""
    return maps.flatten(2).transpose(1, 2).flatten(0, 1)
