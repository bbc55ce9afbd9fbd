"""SimCLR (Chen, Kornblith, Norouzi, Hinton 2020, "A simple framework for contrastive learning", arXiv 2002.05709).

    z_v = projector(cls_v),    L = mean over pairs of views of NT-Xent(z_u, z_v)

NT-Xent: each of the 2B rows of all ranks against all others but itself; the gradient passes through all of them.
Pairs are of a full view with any other. The projector's last batch norm has no affine parameters (the original's has
a scale).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import nt_xent
from equimid.methods.base import Method, unordered_pairs
from equimid.methods.config import SimCLRConfig
from equimid.schedules import StepInfo

__all__ = ["SimCLR"]


class SimCLR(Method):
    """The projector of SimCLR and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = SimCLR(SimCLRConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [], StepInfo())
    """

    def __init__(self, config: SimCLRConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([embed_dim, config.hidden, config.dim])

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.projector(cls) for cls in student]
        return torch.stack([nt_xent(z[u], z[v], self.config.temperature) for u, v in unordered_pairs(len(z))]).mean()
