"""Drawn images as a source, for tests of evaluation."""

import numpy as np
import torch

from equimid.data import ArraySource
from equimid.evaluation import (
    Scope,
)

CPU = torch.device("cpu")
SCOPE = Scope("backbone", "drawn", 0, "abc")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def drawn(n=6, size=(16, 16), labels=True, seed=0, cell=4):
    """n images of random colours in cells of `cell` px; size is (width, height)."""
    rng = np.random.default_rng(seed)
    width, height = size
    cells = rng.integers(0, 256, (n, -(-height // cell), -(-width // cell), 3), dtype=np.uint8)
    return ArraySource(
        name="drawn",
        split="all",
        labels=rng.integers(0, 3, n) if labels else None,
        classes=("a", "b", "c") if labels else (),
        images=cells.repeat(cell, 1).repeat(cell, 2)[:, :height, :width],
        numbers=np.arange(n),
    )
