"""Barlow Twins (Zbontar, Jing, Misra, LeCun, Deny 2021, "Self-supervised learning via redundancy reduction").

    z_v = projector(cls_v),    C_uv = bn(z_u)^T bn(z_v) / B
    L   = mean over pairs of views of sum over i of (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2

C is that of all ranks, and so is its gradient. The original's gradient over W ranks is 1/W of this one: its learning
rates, its clipping and the weight of an add-on mean something else there. Pairs are of a full view with any other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import barlow_twins_loss
from equimid.methods.base import Method, unordered_pairs
from equimid.methods.config import BarlowTwinsConfig
from equimid.schedules import StepInfo

__all__ = ["BarlowTwins"]


class BarlowTwins(Method):
    """The projector of Barlow Twins and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = BarlowTwins(BarlowTwinsConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [], StepInfo())
    """

    def __init__(self, config: BarlowTwinsConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        # the batch norm at the end is in the loss
        self.projector = mlp_head([embed_dim, config.hidden, config.hidden, config.dim], last_norm=False)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.projector(cls) for cls in student]
        weight = self.config.off_diagonal_weight
        return torch.stack([barlow_twins_loss(z[u], z[v], weight) for u, v in unordered_pairs(len(z))]).mean()
