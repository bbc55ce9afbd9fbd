"""The eight symmetries of a square, by numpy."""

import numpy as np

ELEMENTS = [(turns, flip) for flip in (False, True) for turns in range(4)]


def posed(array, turns, flip):
    """Of (..., h, w): flipped left-right, then turned counter-clockwise; numpy's own, not ours."""
    return np.rot90(array[..., ::-1] if flip else array, turns, axes=(-2, -1))
