"""Grids of values of which one is chosen."""

from collections.abc import Sequence

__all__ = ["warn_of_end"]


def warn_of_end(best: float, grid: Sequence[float], what: str = "learning rate") -> dict[str, str]:
    """Details of a record: a warning where the best of several lies at an end, so that a better one may lie beyond."""
    if len(set(grid)) > 1 and best in (min(grid), max(grid)):
        return {"warning": f"the best {what} lies at the end of the grid"}
    return {}
