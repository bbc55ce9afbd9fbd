"""What several seeds show: means with intervals, paired differences, and which differences are too small to count.

n is the number of trainings, one a seed; measuring one training again adds nothing to it. Letters:
    n: seeds    x: their values    d: differences of two settings, seed by seed    t: Student's quantile, n - 1 degrees

    mean      x̄ ± t(0.975) s / √n                                   (Student, The probable error of a mean, 1908)
    paired    the same of d, and p of a two-sided t test of d̄ = 0
    Holm      the k-th smallest of m values of p times m - k + 1, never below the one before  (Holm, 1979)

One rule decides which settings differ: p after Holm's correction over all comparisons of a table is below 0.05. The
interval of a difference is not corrected, so it may leave out 0 where the rule says "not distinguishable". Values
without any spread (n of 1, or the same in every seed) say nothing of the spread: they have no interval and no p, and
differences of this kind are not distinguishable.

The power of the paired t test tells how many seeds would decide, from the spread of the observed differences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from equimid.errors import UserError

__all__ = [
    "CONFIDENCE", "LEVEL", "Difference", "Mean", "holm", "mean_of", "paired_difference", "seeds_needed", "verdict"
]  # fmt: skip

CONFIDENCE = 0.95  # of intervals
LEVEL = 0.05  # of p, below which a difference counts


@dataclass(frozen=True)
class Mean:
    """
    Attributes:
        value: mean of the seeds.
        half:  half the width of its 95 % interval; None where the values have no spread to tell it by.
        n:     seeds.
    """

    value: float
    half: float | None
    n: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.value - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.value + self.half

    def text(self, places: int = 1, signed: bool = False) -> str:
        """57.3 ± 0.8 (n = 3); without an interval 57.3 (n = 1)."""
        value = f"{self.value:{'+' if signed else ''}.{places}f}".replace("-", "−")
        return f"{value}{'' if self.half is None else f' ± {self.half:.{places}f}'} (n = {self.n})"


@dataclass(frozen=True)
class Difference:
    """
    Attributes:
        mean: of the differences over the seeds that both have.
        p:    of the paired t test, not corrected; None where the differences have no spread.
    """

    mean: Mean
    p: float | None


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of one value for each seed, with Student's interval.

    Raises:
        UserError: no value, or one that is not finite.
    """
    return _mean(np.asarray(values, dtype=float), max((abs(v) for v in values), default=0.0))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """`values` minus `baseline`, both {seed: value}, over their common seeds; None where they share none.

    Raises:
        UserError: a value that is not finite.
    """
    common = sorted(values.keys() & baseline.keys())
    if not common:
        return None
    ours, theirs = (np.array([of[seed] for seed in common], dtype=float) for of in (values, baseline))
    mean = _mean(ours - theirs, float(np.abs([ours, theirs]).max()))
    if mean.half is None:
        return Difference(mean, None)
    t = mean.value / mean.half * _quantile(mean.n)
    return Difference(mean, float(2 * stats.t.sf(abs(t), mean.n - 1)))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p of every comparison, corrected for their number (Holm, A simple sequentially rejective multiple test procedure,
    Scandinavian Journal of Statistics 6, 1979). None, where nothing could be tested, stays None and is not counted."""
    tested = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    highest = 0.0
    for k, (value, place) in enumerate(tested):
        highest = max(highest, min(1.0, value * (len(tested) - k)))
        adjusted[place] = highest
    return adjusted


def verdict(difference: Difference, adjusted: float | None) -> str:
    """ "higher", "lower" or "not distinguishable", by p after Holm's correction."""
    if adjusted is None or adjusted >= LEVEL:
        return "not distinguishable"
    return "higher" if difference.mean.value > 0 else "lower"


def seeds_needed(
    spread: float, effect: float, level: float = LEVEL, power: float = 0.8, most: int = 10_000
) -> int | None:
    """The fewest seeds with which a two-sided paired t test at `level` finds a true difference of `effect` with this
    probability, where the differences have the standard deviation `spread`; None beyond `most`.

    Source: the noncentral t distribution (Cohen, Statistical Power Analysis, 1988).

    Example:
        >>> seeds_needed(1.0, 1.0)
        10
    """
    if effect == 0 or spread == 0:
        return None if effect == 0 else 2
    for n in range(2, most + 1):
        critical = float(stats.t.ppf(1 - level / 2, n - 1))
        shift = abs(effect) / spread * math.sqrt(n)
        reached = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        if reached >= power:
            return n
    return None


def _mean(values: npt.NDArray[np.float64], scale: float) -> Mean:
    if not len(values):
        raise UserError("no value to take the mean of; give one for each seed")
    if not np.isfinite(values).all():
        bad = next(v for v in values if not math.isfinite(v))
        raise UserError(f"a value of a seed is {bad}; means take finite values, leave that seed out")
    n, value = len(values), float(values.mean())
    # below that it is the rounding of the values, not a spread
    if n < 2 or np.ptp(values) <= 1e-9 * scale:
        return Mean(value, None, n)
    return Mean(value, float(_quantile(n) * values.std(ddof=1) / math.sqrt(n)), n)


def _quantile(n: int) -> float:
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
