"""BYOL (Grill et al. 2020, "Bootstrap your own latent: a new approach to self-supervised learning", arXiv 2006.07733).

    p_u = predictor(projector(cls_u)),    z_v = momentum projector(momentum cls_v)
    L   = mean of 2 - 2 cosine(p_u, stopgrad(z_v)) over v in {1, 2} and u != v

Of two views the paper adds the two terms up; here is their mean. The momentum network (encoder and projector, no
predictor) follows by EMA after the optimizer's step, with a coefficient that rises from `momentum` to 1 along a cosine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equimid.ema import momentum_copy
from equimid.heads import mlp_head
from equimid.losses import simsiam_loss
from equimid.methods.base import Method, view_pairs
from equimid.methods.config import BYOLConfig
from equimid.schedules import StepInfo, cosine

__all__ = ["BYOL"]


class BYOL(Method):
    """The heads of BYOL and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = BYOL(BYOLConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [first, second], StepInfo())
    """

    uses_momentum = True
    ema_last = True

    def __init__(self, config: BYOLConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([embed_dim, config.hidden, config.dim], last_norm=False, last_bias=True)
        self.predictor = mlp_head([config.dim, config.hidden, config.dim], last_norm=False, last_bias=True)
        self.momentum_projector = momentum_copy(self.projector)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        p = [self.predictor(self.projector(cls)) for cls in student]
        with torch.no_grad():
            z = [self.momentum_projector(cls) for cls in momentum]
        # SimSiam's loss is minus the cosine, without gradient to its second argument
        return 2 + 2 * torch.stack([simsiam_loss(p[u], z[v]) for v, u in view_pairs(len(p))]).mean()

    def momentum_at(self, when: StepInfo) -> float:
        return cosine(when.step, when.total, self.config.momentum, 1.0)

    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.momentum_projector, self.projector)]
