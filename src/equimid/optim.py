"""Optimisers, gradient clipping, and the one place where a momentum network follows its student."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from equimid.errors import UserError
from equimid.schedules import warmup_cosine

__all__ = ["OptimConfig", "build_optimizer", "ema_update_", "momentum_copy"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW as moco-v3 uses it: one weight decay on every trained parameter.

    lr:             learning rate at the end of warm-up, per 256 images of global batch
    weight_decay:   of all trained parameters
    betas:          of AdamW
    warmup_epochs:  linear from 0
    final_lr:       end of the cosine, per 256 images
    clip:           norm that the whole gradient is clipped to; 0 = no clipping
    """

    lr: float = 1.5e-4
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 40
    final_lr: float = 0.0
    clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_epochs", "final_lr", "clip"):
            if getattr(self, name) < 0:
                raise UserError(f"optim.{name} is {getattr(self, name)}; it must be 0 or more")

    def lr_at(self, step: int, total: int, steps_per_epoch: int, batch_size: int) -> float:
        """Learning rate of a step (0-based) of `total`, for a global batch."""
        warmup = self.warmup_epochs * steps_per_epoch
        return warmup_cosine(step, total, warmup, self.lr, self.final_lr) * batch_size / 256


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW over the parameters of `module` that are trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, foreach=True)


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that shares no storage and is not trained: it moves only through `ema_update_`.

    Its buffers (batch-norm statistics) follow its own forward passes.
    """
    follower = copy.deepcopy(module)
    return follower.requires_grad_(False)


@torch.no_grad()
def ema_update_(follower: nn.Module, leader: nn.Module, momentum: float) -> None:
    """follower <- momentum * follower + (1 - momentum) * leader, parameters only. The leader is not touched."""
    torch._foreach_lerp_(list(follower.parameters()), list(leader.parameters()), 1 - momentum)
