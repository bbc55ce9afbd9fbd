"""DINO (Caron et al. 2021, "Emerging properties in self-supervised vision transformers").

    s_u = head(cls_u),    t_v = momentum head(momentum cls_v),    c = center, an EMA of t
    L   = mean over v in {1, 2} and u != v of cross-entropy(softmax((t_v - c) / tau_t), softmax(s_u / tau_s))

The momentum network follows by EMA after the optimizer's step, with a coefficient that rises from `momentum` to 1
along a cosine. tau_t rises linearly per epoch; in the first epochs the prototypes stay as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from equimid.ema import momentum_copy
from equimid.heads import DINOHead
from equimid.losses import DINOLoss
from equimid.methods.base import METHODS, Method, MethodConfig
from equimid.methods.checks import fraction, not_negative, positive
from equimid.schedules import StepInfo, cosine

__all__ = ["DINO", "DINOConfig"]


@METHODS.register
@dataclass(frozen=True)
class DINOConfig(MethodConfig):
    """
    out_dim:                    prototypes K
    hidden, bottleneck:         widths of the head
    norm_last_layer:            whether the prototypes keep length 1 (the original trains ViT-S without)
    student_temperature:        tau_s
    teacher_temperature_start:  tau_t in epoch 0
    teacher_temperature:        tau_t from the last epoch of its warm-up on
    teacher_warmup_epochs:      epochs of that warm-up; 0 = none (the original also gives 0.04 to 0.07 over 30)
    center_momentum:            of the center's EMA
    momentum:                   EMA coefficient at step 0; 1 at the end
    freeze_last_layer_epochs:   first epochs in which the prototypes stay as they are
    """

    name: Literal["dino"] = "dino"
    out_dim: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    norm_last_layer: bool = False
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature: float = 0.04
    teacher_warmup_epochs: int = 0
    center_momentum: float = 0.9
    momentum: float = 0.996
    freeze_last_layer_epochs: int = 1

    def __post_init__(self) -> None:
        positive(self, "out_dim", "hidden", "bottleneck")
        positive(self, "student_temperature", "teacher_temperature_start", "teacher_temperature")
        fraction(self, "center_momentum", "momentum")
        not_negative(self, "teacher_warmup_epochs", "freeze_last_layer_epochs")

    def build(self, embed_dim: int) -> "DINO":
        return DINO(self, embed_dim)

    def teacher_temperature_at(self, epoch: int) -> float:
        """tau_t of an epoch, counted from 0."""
        start, end, last = self.teacher_temperature_start, self.teacher_temperature, self.teacher_warmup_epochs - 1
        if epoch > last:
            return end
        return start + (end - start) * epoch / max(last, 1)


class DINO(Method):
    """The heads of DINO and its loss, for CLS embeddings of `embed_dim` columns."""

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
