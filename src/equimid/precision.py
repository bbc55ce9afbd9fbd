"""Losses and normalisations compute in float32 or wider, whatever autocast surrounds them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["l2_normalize", "no_autocast", "upcast"]

_SHORTEST = 1e-12  # shorter rows are not made longer than that allows, as in `F.normalize`


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of x."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def upcast(x: Tensor) -> Tensor:
    """x in float32, or float64 for float64 input."""
    return x if x.dtype == torch.float64 else x.float()


def l2_normalize(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 or wider; a row of zeros stays one."""
    rows: Tensor = _L2Normalize.apply(upcast(x))
    return rows


class _L2Normalize(torch.autograd.Function):
    """`F.normalize` over columns; its gradient is one new matrix here and several there, for many patches a quarter of
    the patch loss's memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min_(_SHORTEST)
        rows: Tensor = x / norms
        ctx.save_for_backward(rows, norms)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rows, norms = ctx.saved_tensors
        with no_autocast(rows):  # `backward` may be called inside it
            along = torch.linalg.vecdot(rows, gradient)[:, None]
            return torch.addcmul(gradient, rows, along, value=-1).div_(norms)
