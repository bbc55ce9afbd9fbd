"""MoCo-v3 (Chen, Xie, He 2021, "An empirical study of training self-supervised vision transformers").

    q_v = predictor(projector(cls_v)),    k_v = momentum projector(momentum cls_v)
    L   = 2 * mean of ctr(q_u, k_v) over v in {1, 2} and u != v,    ctr = 2 tau cross-entropy over the keys of all ranks

Of two views that is the paper's ctr(q_1, k_2) + ctr(q_2, k_1). The momentum network (encoder and projector, no
predictor) follows by EMA before the keys are computed, with a coefficient that rises from `momentum` to 1 along a
cosine.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equimid.ema import momentum_copy
from equimid.heads import mlp_head
from equimid.losses import info_nce
from equimid.methods.base import Method, view_pairs
from equimid.methods.config import MoCoV3Config
from equimid.schedules import StepInfo, cosine

__all__ = ["MoCoV3"]


class MoCoV3(Method):
    """The heads of MoCo-v3 and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = MoCoV3(MoCoV3Config(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [first, second], StepInfo())
    """

    uses_momentum = True

    def __init__(self, config: MoCoV3Config, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([embed_dim, config.hidden, config.hidden, config.dim])
        self.predictor = mlp_head([config.dim, config.hidden, config.dim])
        self.momentum_projector = momentum_copy(self.projector)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        q = [self.predictor(self.projector(cls)) for cls in student]
        with torch.no_grad():
            k = [self.momentum_projector(cls) for cls in momentum]
        terms = [info_nce(q[u], k[v], self.config.temperature) for v, u in view_pairs(len(q))]
        total = torch.stack(terms).sum()
        return total if self.config.multi_crop == "sum" else total * (2 / len(terms))

    def momentum_at(self, when: StepInfo) -> float:
        return cosine(when.step, when.total, self.config.momentum, 1.0)

    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.momentum_projector, self.projector)]
