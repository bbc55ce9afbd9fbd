"""SimCLR (Chen, Kornblith, Norouzi, Hinton 2020, "A simple framework for contrastive learning", arXiv 2002.05709).

    z_v = projector(cls_v),    L = mean over pairs of views of NT-Xent(z_u, z_v)

NT-Xent: each of the 2B rows of all ranks against all others but itself; the gradient passes through all of them.
Pairs are of a full view with any other. The projector's last batch norm has no affine parameters (the original's has
a scale).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import nt_xent
from equimid.methods.base import METHODS, Method, MethodConfig, unordered_pairs
from equimid.methods.checks import positive
from equimid.schedules import StepInfo

__all__ = ["SimCLR", "SimCLRConfig"]


@METHODS.register
@dataclass(frozen=True)
class SimCLRConfig(MethodConfig):
    """
    temperature: tau
    hidden, dim: widths of the projector (two linears) and of the embedding
    """

    name: Literal["simclr"] = "simclr"
    temperature: float = 0.1
    hidden: int = 2048
    dim: int = 128

    def __post_init__(self) -> None:
        positive(self, "temperature", "hidden", "dim")

    def build(self, embed_dim: int) -> "SimCLR":
        return SimCLR(self, embed_dim)


class SimCLR(Method):
    """The projector of SimCLR and its loss, for CLS embeddings of `embed_dim` columns."""

    def __init__(self, config: SimCLRConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([embed_dim, config.hidden, config.dim])

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.projector(cls) for cls in student]
        return torch.stack([nt_xent(z[u], z[v], self.config.temperature) for u, v in unordered_pairs(len(z))]).mean()
