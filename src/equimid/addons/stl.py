"""STL (Yu et al. 2024, NeurIPS, "Self-supervised Transformation Learning for Equivariant Representations").

Images 2j and 2j + 1 are a pair that shares crop, jitter and grey in each view; i' is the other image of i's pair. A
transformation is told by two views of one image and applied to the other image of the pair:

    t_12 = g([y_1, y_2]),  t_21 = g([y_2, y_1]),    y^_1 = M(t_21 of i') y_2,  y^_2 = M(t_12 of i') y_1
    L = L_equi(p(y), p(y^)) + w L_trans(q(t of even images), q(t of odd images)),

g, p, q two-layer nets, M a linear map from t to a D x D matrix.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from equimid.addons.base import ADDONS, Addon, AddonContext, EmbeddingAddonConfig, StudentOutputs
from equimid.addons.forms import FORMS, Form, check_form
from equimid.distributed import CrossRankBatchNorm1d
from equimid.errors import UserError
from equimid.views import ViewPlan

__all__ = ["STL", "STLConfig"]


@ADDONS.register
@dataclass(frozen=True)
class STLConfig(EmbeddingAddonConfig):
    """
    temperature:  tau of both losses
    trans_weight: w, of L_trans beside L_equi
    trans_dim:    of t, and the width of g and q;  hidden: width of p;  dim: of what is compared
    form:         of both losses
    """

    name: ClassVar[str] = "stl"

    temperature: float = 0.2
    trans_weight: float = 0.1
    trans_dim: int = 128
    hidden: int = 512
    dim: int = 128
    form: Form = "comparison"

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = {"trans_dim": self.trans_dim, "hidden": self.hidden, "dim": self.dim}
        check_form(self.name, self.form, self.temperature, **widths)
        if not 0 <= self.trans_weight < float("inf"):
            raise UserError(f"stl.trans_weight is {self.trans_weight}; it must be a number of 0 or more")

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """The same views, aligned in pairs; the task rounds the posed images of an aligned plan up to whole pairs.

        Raises:
            UserError: an odd micro-batch.
        """
        plan = super().extend(plan, context)
        if context.batch % 2:
            raise UserError(
                f"stl pairs the images of a micro-batch, and it has {context.batch}: an odd number; "
                f"use {context.batch + 1} (train.batch_size / train.accumulate)"
            )
        return replace(plan, aligned=True)

    def build(self, embed_dim: int, plan: ViewPlan) -> "STL":
        return STL(self, embed_dim)


class STL(Addon):
    """g, M, p, q, and the loss."""

    def __init__(self, config: STLConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        t = config.trans_dim
        self.trans_net = _two_layers(2 * embed_dim, t, t)
        self.hypernetwork = nn.Linear(t, embed_dim * embed_dim, bias=False)
        self.projector = _two_layers(embed_dim, config.hidden, config.dim)
        self.trans_projector = _two_layers(t, t, config.dim)

    def forward(self, outputs: StudentOutputs) -> Tensor:
        y1, y2 = (self.config.read(f) for f in outputs.crops[:2])
        if len(y1) % 2:
            raise ValueError(f"found {len(y1)} cropped images on a rank; STL expects whole pairs")
        # each batch through the nets on its own, as in the original: their norms see one kind of row
        t12, t21 = self.trans_net(torch.cat([y1, y2], 1)), self.trans_net(torch.cat([y2, y1], 1))
        moved1, moved2 = self.move(y2, _swapped(t21)), self.move(y1, _swapped(t12))
        loss, p, q = FORMS[self.config.form], self.projector, self.trans_projector
        equi = loss(torch.cat([p(y1), p(y2)]), torch.cat([p(moved1), p(moved2)]), self.config.temperature)
        even, odd = torch.cat([t12[0::2], t21[0::2]]), torch.cat([t12[1::2], t21[1::2]])
        trans = loss(q(even), q(odd), self.config.temperature)
        return equi + self.config.trans_weight * trans

    def move(self, y: Tensor, t: Tensor) -> Tensor:
        """M(t) y: (b, D) by (b, T) to (b, D)."""
        matrices = self.hypernetwork(t).view(len(y), y.shape[1], y.shape[1])
        return torch.einsum("bij,bj->bi", matrices, y.to(matrices.dtype))


def _two_layers(before: int, hidden: int, after: int) -> nn.Sequential:
    """Bias-free linear, cross-rank batch norm, ReLU, bias-free linear."""
    return nn.Sequential(
        nn.Linear(before, hidden, bias=False),
        CrossRankBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, after, bias=False),
    )


def _swapped(rows: Tensor) -> Tensor:
    """Rows 2j and 2j + 1 exchanged."""
    return rows.view(len(rows) // 2, 2, rows.shape[1]).flip(1).flatten(0, 1)
