"""SimSiam (Chen and He 2021, "Exploring simple siamese representation learning", arXiv 2011.10566).

    z_v = projector(cls_v),    p_v = predictor(z_v),    D(p, z) = -cosine(p, stopgrad(z))
    L   = mean of D(p_u, z_v) over v in {1, 2} and u != v

Of two views that is the paper's D(p_1, z_2) / 2 + D(p_2, z_1) / 2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from equimid.heads import mlp_head
from equimid.losses import simsiam_loss
from equimid.methods.base import Method, view_pairs
from equimid.methods.config import SimSiamConfig
from equimid.schedules import StepInfo

__all__ = ["SimSiam"]


class SimSiam(Method):
    """The heads of SimSiam and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = SimSiam(SimSiamConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [], StepInfo())
    """

    def __init__(self, config: SimSiamConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([embed_dim, config.hidden, config.hidden, config.dim])
        self.predictor = mlp_head([config.dim, config.bottleneck, config.dim], last_norm=False, last_bias=True)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        z = [self.projector(cls) for cls in student]
        p = [self.predictor(rows) for rows in z]
        return torch.stack([simsiam_loss(p[u], z[v]) for v, u in view_pairs(len(z))]).mean()
