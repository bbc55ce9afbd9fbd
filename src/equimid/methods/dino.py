"""DINO (Caron et al. 2021, "Emerging properties in self-supervised vision transformers").

    s_u = head(cls_u),    t_v = momentum head(momentum cls_v),    c = center, an EMA of t
    L   = mean over v in {1, 2} and u != v of cross-entropy(softmax((t_v - c) / tau_t), softmax(s_u / tau_s))

The momentum network follows by EMA after the optimizer's step, with a coefficient that rises from `momentum` to 1
along a cosine. tau_t rises linearly per epoch; in the first epochs the prototypes stay as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equimid.ema import momentum_copy
from equimid.heads import DINOHead
from equimid.losses import DINOLoss
from equimid.methods.base import Method
from equimid.methods.config import DINOConfig
from equimid.schedules import StepInfo, cosine

__all__ = ["DINO"]


class DINO(Method):
    """The heads of DINO and its loss, for CLS embeddings of `embed_dim` columns.

    Example:
        >>> method = DINO(DINOConfig(), embed_dim=384)
        >>> first, second = torch.randn(2, 8, 384)  # CLS embeddings of two views of 8 images
        >>> loss = method([first, second], [first, second], StepInfo())
    """

    uses_momentum = True
    ema_last = True

    def __init__(self, config: DINOConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = DINOHead(embed_dim, config.hidden, config.bottleneck, config.out_dim, config.norm_last_layer)
        self.momentum_head = momentum_copy(self.head)
        self.loss = DINOLoss(config.out_dim, config.student_temperature, config.center_momentum)

    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        s = self.head(torch.cat(list(student)))
        with torch.no_grad():
            t = self.momentum_head(torch.cat(list(momentum)))
        loss: Tensor = self.loss(s, t, self.config.teacher_temperature_at(when.epoch))
        return loss

    def momentum_at(self, when: StepInfo) -> float:
        return cosine(when.step, when.total, self.config.momentum, 1.0)

    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.momentum_head, self.head)]

    def frozen_at(self, when: StepInfo) -> list[nn.Parameter]:
        if when.epoch >= self.config.freeze_last_layer_epochs:
            return []
        return [p for p in self.head.last_layer.parameters() if p.requires_grad]
