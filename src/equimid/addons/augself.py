"""AugSelf (Lee et al. 2021, NeurIPS, "Improving Transferability of Representations via Augmentation-Aware
Self-Supervision"): predict, from the features of two views, how their augmentations differ.

b images of this rank, D columns, z_1 and z_2 the features of the first two standard views. For each target t of
weight w_t > 0 a predictor phi_t of its own, and the difference of the two views' parameters d_t:

    L = sum_t w_t ( l_t(phi_t[z_1, z_2], d_t(1, 2)) + l_t(phi_t[z_2, z_1], d_t(2, 1)) ) / 2        mean over images
    l_t(p, d) = mean_i (tanh(p_i) - d_i)^2;  for flip the binary cross-entropy of the logit p

    crop   (4)  centre (y, x), with x mirrored in a flipped view, and size (height, width), as fractions of the image
    colour (4)  factors of brightness, contrast, saturation, each over the width of its range, and hue over its own;
                a jitter that was not applied is its identity; where the views' ranges differ, the larger width
    flip   (1)  whether both views are flipped or neither
    blur   (1)  sigma in px, 0 if not applied; in px as in the original, so above 1 it is out of tanh's reach

Both orders pass a predictor as one batch of 2b rows, so its batch norm sees both. The original's rotation target is
left out, because our crops are not turned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid.addons.base import ADDONS, Addon, AddonContext, EmbeddingAddonConfig, StudentOutputs
from equimid.distributed import mean_over_ranks
from equimid.errors import UserError
from equimid.heads import mlp_head
from equimid.precision import no_autocast, upcast
from equimid.views import FIELDS, Batch, CropView, ViewPlan

__all__ = ["AugSelf", "AugSelfConfig", "colour_widths", "differences"]

_TARGETS = {"crop": 4, "colour": 4, "flip": 1, "blur": 1}  # columns
_FACTORS = ("brightness", "contrast", "saturation")
_COLOURS = [FIELDS.index(name) for name in (*_FACTORS, "hue")]
_SIGMA = [FIELDS.index("sigma")]


@ADDONS.register
@dataclass(frozen=True)
class AugSelfConfig(EmbeddingAddonConfig):
    """
    crop, colour, flip, blur: weight of each target; 0 = it has no predictor (the original on ImageNet: 0.5, 0.5, 0, 0)
    hidden: width of the predictors
    form:   "comparison": both features are the student's, with gradient (SER's comparison; the original on SimSiam);
            "original": the second view's feature has no gradient, as in the original on MoCo: it is the momentum
            network's, or where there is none the student's own
    """

    name: ClassVar[str] = "augself"

    crop: float = 0.5
    colour: float = 0.5
    flip: float = 0.0
    blur: float = 0.0
    hidden: int = 512
    form: Literal["comparison", "original"] = "comparison"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in _TARGETS:
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"augself.{name} is {getattr(self, name)}; it must be a weight of 0 or more")
        if not self.weights:
            raise UserError("augself predicts nothing: crop, colour, flip, blur all weigh 0; use augself.crop=0.5")
        if self.hidden < 1:
            raise UserError(f"augself.hidden is {self.hidden}; it must be a width of 1 or more")
        if self.form not in ("comparison", "original"):
            raise UserError(f"augself.form is {self.form!r}; it must be comparison or original")

    @property
    def weights(self) -> dict[str, float]:
        """Of the targets that are predicted."""
        return {name: getattr(self, name) for name in _TARGETS if getattr(self, name)}

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """The plan as it is.

        Raises:
            UserError: a target is the same for all images, so that there is nothing to predict.
        """
        plan = super().extend(plan, context)
        for name in self.weights:
            constant, why, remedy = _CONSTANT[name]
            if all(constant(view) for view in plan.crops[:2]):
                raise UserError(
                    f"augself.{name} is {getattr(self, name)}, but {why} in both views, so there is nothing to "
                    f"predict; use augself.{name}=0, or {remedy}"
                )
        return plan

    def build(self, embed_dim: int, plan: ViewPlan) -> "AugSelf":
        return AugSelf(self, embed_dim, plan)


def _colourless(view: CropView) -> bool:
    drawn = view.photometric
    return not drawn.jitter or not any((drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue))


def _one_blur(view: CropView) -> bool:
    drawn = view.photometric
    return not drawn.blur or (drawn.blur == 1 and drawn.blur_sigma[0] == drawn.blur_sigma[1])


# of each target: whether a view draws one value for all images, in words, and what to set
_CONSTANT: dict[str, tuple[Callable[[CropView], bool], str, str]] = {
    "crop": (lambda view: view.scale[0] == 1, "the crop is the whole image", "views.crop_scale=[0.2,1.0]"),
    "colour": (_colourless, "no colour is jittered", "views.first.jitter=0.8 with views.first.brightness=0.4"),
    "flip": (lambda view: view.flip in (0, 1), "the flip is always the same", "views.flip=0.5"),
    "blur": (_one_blur, "the blur is always the same", "views.first.blur=0.5"),
}


class AugSelf(Addon):
    """A predictor for every target, and L."""

    def __init__(self, config: AugSelfConfig, embed_dim: int, plan: ViewPlan) -> None:
        super().__init__()
        self.config, self.widths = config, colour_widths(plan.crops[:2])
        self.one_sided = config.form == "original"
        layers = {t: (2 * embed_dim, config.hidden, config.hidden, _TARGETS[t]) for t in config.weights}
        # torch's default initialisation is the original's U(+-1/sqrt(fan_in))
        predictors = {t: mlp_head(widths, last_norm=False, last_bias=True) for t, widths in layers.items()}
        self.predictors = nn.ModuleDict(predictors)

    def forward(self, outputs: StudentOutputs) -> Tensor:
        """L, of this rank's share; a rank may have no images."""
        if outputs.views.batch is None:
            raise ValueError("AugSelf reads what was drawn, and these views have none; give Views(..., batch=...)")
        z1, z2 = (self.config.read(features) for features in outputs.crops[:2])
        if self.one_sided:
            z2 = self.config.read(outputs.momentum_crops[1]) if outputs.momentum_crops else z2.detach()
        z = torch.cat([torch.cat([z1, z2], 1), torch.cat([z2, z1], 1)])
        wanted = self._targets(outputs.views.batch)
        losses = []
        for name, weight in self.config.weights.items():
            found = self.predictors[name](z)
            with no_autocast(found):
                error = _ERRORS[name](upcast(found), wanted[name].to(upcast(found), non_blocking=True))
                losses.append(weight * mean_over_ranks(error.mean(1)))
        return torch.stack(losses).sum()

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        """{target: (2b, columns)}: view 1 against view 2 of every image, then view 2 against view 1."""
        # a rank whose images are all posed has no boxes
        boxes = batch.crop_boxes[:2] or [torch.zeros(0, 5)] * 2
        rows = batch.crop_rows[:2] or [torch.zeros(0, len(FIELDS))] * 2
        there = differences(boxes[0], rows[0], boxes[1], rows[1], self.widths)
        back = differences(boxes[1], rows[1], boxes[0], rows[0], self.widths)
        return {name: torch.cat([there[name], back[name]]) for name in _TARGETS}


def differences(
    boxes1: Tensor, rows1: Tensor, boxes2: Tensor, rows2: Tensor, widths: Sequence[float]
) -> dict[str, Tensor]:
    """{target: (b, columns)} of view 1 against view 2.

    Args:
        boxes1, boxes2: (b, 5): top, left, height, width as fractions of the image, and whether flipped.
        rows1, rows2: (b, P) photometric parameters.
        widths: of the ranges of brightness, contrast, saturation, hue; a width of 0 gives 0.
    """
    scale = torch.tensor([1 / width if width else 0.0 for width in widths], dtype=rows1.dtype, device=rows1.device)
    return {
        "crop": _placed(boxes1) - _placed(boxes2),
        "colour": (rows1[:, _COLOURS] - rows2[:, _COLOURS]) * scale,
        "flip": (boxes1[:, 4:] == boxes2[:, 4:]).to(boxes1.dtype),
        "blur": rows1[:, _SIGMA] - rows2[:, _SIGMA],
    }


def _placed(boxes: Tensor) -> Tensor:
    """(b, 4): centre and size of what a view shows, in the frame in which it shows it."""
    top, left, height, width, flipped = boxes.unbind(1)
    x = left + width / 2
    return torch.stack([top + height / 2, torch.where(flipped > 0, 1 - x, x), height, width], 1)


def colour_widths(views: Sequence[CropView]) -> tuple[float, ...]:
    """Widths of the ranges of brightness, contrast, saturation and hue: of each the largest over the views."""
    drawn = [view.photometric for view in views]
    # a factor is not below 0, so a range x above 1 is 1 + x wide
    factors = [max(getattr(p, name) + min(getattr(p, name), 1.0) for p in drawn) for name in _FACTORS]
    return (*factors, max(2 * p.hue for p in drawn))


# (found, wanted) to the error of every entry
_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(("crop", "colour", "blur"), lambda found, wanted: (found.tanh() - wanted).square()),
    "flip": partial(F.binary_cross_entropy_with_logits, reduction="none"),
}
