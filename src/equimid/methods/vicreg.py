"""VICReg (Bardes, Ponce, LeCun 2022, "Variance-invariance-covariance regularization", arXiv 2105.04906).

    z_v = expander(cls_v)
    L   = mean over pairs of views of a * |z_u - z_v|^2 + b * hinge of each column's spread + c * covariances squared

in full in `equimid.losses.vicreg`. Pairs are of a full view with any other.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import vicreg_loss
from equimid.methods.base import Method, unordered_pairs
from equimid.methods.config import VICRegConfig
from equimid.schedules import StepInfo

__all__ = ["VICReg"]


class VICReg(Method):
    """The expander of VICReg and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = VICReg(VICRegConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [], StepInfo())
    """

    def __init__(self, config: VICRegConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.expander = mlp_head([embed_dim, config.hidden, config.hidden, config.dim], last_norm=False)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.expander(cls) for cls in student]
        weights = self.config.invariance, self.config.variance, self.config.covariance
        return torch.stack([vicreg_loss(z[u], z[v], *weights) for u, v in unordered_pairs(len(z))]).mean()
