"""The one place where a momentum network follows its student."""

import copy

import torch
from torch import nn

__all__ = ["ema_update_", "momentum_copy"]


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy that shares no storage and is not trained: it moves only through `ema_update_`.

    Its buffers (batch-norm statistics) follow its own forward passes.
    """
    teacher = copy.deepcopy(module)
    return teacher.requires_grad_(False)


@torch.no_grad()
def ema_update_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """follower <- momentum * follower + (1 - momentum) * leader, parameters only. The leader is not touched."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)
