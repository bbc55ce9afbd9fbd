"""MoCo-v3 (Chen, Xie, He 2021, "An empirical study of training self-supervised vision transformers").

    q_v = predictor(projector(cls_v)),    k_v = momentum projector(momentum cls_v)
    L   = ctr(q_1, k_2) + ctr(q_2, k_1),  ctr = 2 tau cross-entropy over the keys of all ranks

The momentum network (encoder and projector, no predictor) follows by EMA before the keys are computed, with a
coefficient that rises from `momentum` to 1 along a cosine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.heads import mlp_head
from equimid.losses import mocov3_loss
from equimid.methods.base import Method
from equimid.optim import momentum_copy
from equimid.schedules import cosine

__all__ = ["MoCoV3", "MoCoV3Config"]


@dataclass(frozen=True)
class MoCoV3Config:
    """
    temperature: tau
    momentum:    EMA coefficient at step 0; 1 at the end
    hidden, dim: widths of the heads and of the embedding
    """

    name: Literal["mocov3"] = "mocov3"
    temperature: float = 0.2
    momentum: float = 0.99
    hidden: int = 4096
    dim: int = 256

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"method.temperature is {self.temperature}; it must be positive")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"method.momentum is {self.momentum}; it must lie in 0..1")


class MoCoV3(Method):
    """The heads of MoCo-v3 and its loss, for CLS embeddings of `width` columns."""

    name = "mocov3"
    uses_momentum = True

    def __init__(self, config: MoCoV3Config, width: int) -> None:
        super().__init__()
        self.config = config
        self.projector = mlp_head([width, config.hidden, config.hidden, config.dim])
        self.predictor = mlp_head([config.dim, config.hidden, config.dim])
        self.momentum_projector = momentum_copy(self.projector)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor]) -> Tensor:
        q1, q2 = (self.predictor(self.projector(cls)) for cls in student)
        with torch.no_grad():
            k1, k2 = (self.momentum_projector(cls) for cls in momentum)
        return mocov3_loss(q1, q2, k1, k2, self.config.temperature)

    def momentum_at(self, step: int, total: int) -> float:
        return cosine(step, total, self.config.momentum, 1.0)

    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.momentum_projector, self.projector)]
