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
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid.addons.base import Addon, StudentOutputs
from equimid.addons.config import AugSelfConfig
from equimid.distributed import mean_over_ranks
from equimid.heads import mlp_head
from equimid.precision import no_autocast, upcast
from equimid.views import FIELDS, Batch, CropView, ViewPlan

__all__ = ["AugSelf", "colour_widths", "differences"]

_TARGETS = {"crop": 4, "colour": 4, "flip": 1, "blur": 1}  # columns
_FACTORS = ("brightness", "contrast", "saturation")
_COLOURS = [FIELDS.index(name) for name in (*_FACTORS, "hue")]
_SIGMA = [FIELDS.index("sigma")]


class AugSelf(Addon):
    """A predictor for every target, and L.

    Example:
        >>> config = AugSelfConfig()
        >>> plan = plan_views(ViewsConfig(), BackboneConfig(), {"augself": config}, batch_size=8)
        >>> addon = AugSelf(config, 384, plan)
        >>> drawn = [ViewBatch(torch.empty(0), torch.rand(8, 5), torch.rand(8, len(FIELDS))) for _ in range(2)]
        >>> views = Views([], batch=Batch(drawn, [], torch.arange(8), ()))  # a data loader makes this batch
        >>> loss = addon(StudentOutputs([Features(torch.randn(8, 384)) for _ in range(2)], views=views))
    """

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
        targets = self._targets(outputs.views.batch)
        losses = []
        for name, weight in self.config.weights.items():
            prediction = self.predictors[name](z)
            with no_autocast(prediction):
                error = _ERRORS[name](upcast(prediction), targets[name].to(upcast(prediction), non_blocking=True))
                losses.append(weight * mean_over_ranks(error.mean(1)))
        return torch.stack(losses).sum()

    def _targets(self, batch: Batch) -> dict[str, Tensor]:
        """{target: (2b, columns)}: view 1 against view 2 of every image, then view 2 against view 1."""
        # a rank whose images are all posed has no boxes
        boxes = [view.boxes for view in batch.crops[:2]] or [torch.zeros(0, 5)] * 2
        rows = [view.photometric for view in batch.crops[:2]] or [torch.zeros(0, len(FIELDS))] * 2
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


# (prediction, targets) to the error of every entry
_ERRORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **dict.fromkeys(("crop", "colour", "blur"), lambda prediction, targets: (prediction.tanh() - targets).square()),
    "flip": partial(F.binary_cross_entropy_with_logits, reduction="none"),
}
