"""Fixed stratified splits."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from equimid.errors import UserError

__all__ = ["holdout"]

Indices = npt.NDArray[np.int64]


def holdout(labels: npt.NDArray[Any], share: float | int, seed: int) -> tuple[Indices, Indices]:
    """(fit, held) indices into labels (n,), ascending, disjoint, together all; the classes in proportion.

    share: in (0, 0.5], or the number of held images; at least one image a class is held.
    A class of a single image stays in fit.

    Raises:
        UserError: no class has two images.
    """
    # here, so that data workers do not load it
    from sklearn.model_selection import train_test_split

    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    single = np.flatnonzero(counts[inverse] < 2)
    several = np.flatnonzero(counts[inverse] >= 2)
    if several.size == 0:
        raise UserError(
            f"{len(labels)} images in {len(classes)} classes cannot be split into two parts: "
            "expected at least two images of one class; give more images"
        )
    held_count = share if isinstance(share, int) else math.ceil(share * len(several))
    fit, held = train_test_split(
        several,
        test_size=max(held_count, int((counts >= 2).sum())),
        random_state=seed,
        stratify=inverse[several],
    )
    return np.sort(np.concatenate([fit, single])), np.sort(held)
