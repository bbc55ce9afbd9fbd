"""VICReg (Bardes, Ponce, LeCun 2022, "Variance-invariance-covariance regularization", arXiv 2105.04906).

    z_v = expander(cls_v)
    L   = mean over pairs of views of a * |z_u - z_v|^2 + b * hinge of each column's spread + c * covariances squared

in full in `equimid.losses.vicreg`. Pairs are of a full view with any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import vicreg_loss
from equimid.methods.base import METHODS, Method, MethodConfig, unordered_pairs
from equimid.methods.checks import not_negative, positive
from equimid.schedules import StepInfo

__all__ = ["VICReg", "VICRegConfig"]


@METHODS.register
@dataclass(frozen=True)
class VICRegConfig(MethodConfig):
    """
    invariance, variance, covariance: weights of the three terms (a, b, c)
    hidden, dim:                      widths of the expander (three linears) and of the embedding
    """

    name: Literal["vicreg"] = "vicreg"
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    hidden: int = 8192
    dim: int = 8192

    def __post_init__(self) -> None:
        not_negative(self, "invariance", "variance", "covariance")
        positive(self, "hidden", "dim")

    def build(self, embed_dim: int) -> "VICReg":
        return VICReg(self, embed_dim)


class VICReg(Method):
    """The expander of VICReg and its loss, for CLS embeddings of `embed_dim` columns."""

    def __init__(self, config: VICRegConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.expander = mlp_head([embed_dim, config.hidden, config.hidden, config.dim], last_norm=False)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.expander(cls) for cls in student]
        weights = self.config.invariance, self.config.variance, self.config.covariance
        return torch.stack([vicreg_loss(z[u], z[v], *weights) for u, v in unordered_pairs(len(z))]).mean()
