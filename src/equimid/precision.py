"""Losses and normalisations compute in float32 or wider, whatever autocast surrounds them."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["no_autocast", "unit_rows", "wide"]


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast off on the device of x."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def wide(x: Tensor) -> Tensor:
    """x in float32, or float64 for float64 input."""
    return x if x.dtype == torch.float64 else x.float()


def unit_rows(x: Tensor) -> Tensor:
    """Rows of unit length, in float32 or wider."""
    return F.normalize(wide(x), dim=1)
