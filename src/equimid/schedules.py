"""Schedules: pure functions of the step. `step` counts from 0; `total` and `warmup` are in steps too."""

import math
from typing import NamedTuple

__all__ = ["StepInfo", "cosine", "dino_warmup_cosine", "warmup_cosine"]


class StepInfo(NamedTuple):
    """A step of a run: `step` counts from 0 to `total` - 1."""

    step: int = 0
    total: int = 1
    steps_per_epoch: int = 1

    @property
    def epoch(self) -> int:
        """Counted from 0."""
        return self.step // self.steps_per_epoch


def cosine(step: float, total: float, start: float, end: float) -> float:
    """Half a cosine from `start` at step 0 to `end` at step `total`.

    MoCo-v3's momentum is cosine(step, total, 0.99, 1), DINO's weight decay cosine(step, total, 0.04, 0.4).
    """
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def warmup_cosine(step: float, total: float, warmup: float, peak: float, end: float = 0.0) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then a cosine to `end` at `total` (moco-v3 `main_moco.py`)."""
    if step < warmup:
        return peak * step / warmup
    return cosine(step - warmup, max(total - warmup, 1), peak, end)


def dino_warmup_cosine(step: int, total: int, warmup: int, peak: float, end: float) -> float:
    """As `warmup_cosine`, but `peak` is reached at the last step of the warm-up (dino `utils.cosine_scheduler`)."""
    if step < warmup:
        return peak * step / max(warmup - 1, 1)
    return cosine(step - warmup, max(total - warmup, 1), peak, end)
