"""Means, paired differences and Holm's correction against scipy and by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from equimid.errors import UserError
from equimid.statistics import Difference, Mean, holm, mean_of, paired_difference, verdict


def test_the_mean_by_hand():
    """1, 2, 3: s = 1, t(0.975; 2) = 4.3027 (Student's table), so 2 ± 4.3027 / sqrt(3)."""
    mean = mean_of([1, 2, 3])
    assert (mean.value, mean.n) == (2, 3)
    assert mean.half == pytest.approx(4.302653 / 1.7320508, rel=1e-6)
    assert (mean.low, mean.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), rel=1e-6)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_means_and_differences_agree_with_scipy(n):
    draw = np.random.default_rng(n)
    ours, theirs = draw.normal(57, 2, n), draw.normal(56, 2, n)
    mean = mean_of(list(ours))
    interval = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    # the baseline's seeds come in another order: pairs are made by seed
    found = paired_difference(dict(enumerate(ours)), {seed: theirs[seed] for seed in reversed(range(n))})
    test = stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(test.pvalue, rel=1e-9)
    interval = test.confidence_interval(0.95)
    assert (found.mean.low, found.mean.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_only_common_seeds_are_paired():
    found = paired_difference({0: 5.0, 1: 7.0, 2: 100.0}, {1: 4.0, 0: 3.0, 7: -100.0})
    assert (found.mean.value, found.mean.n) == (2.5, 2)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    # pairs take away what the seeds have in common: 2 and 3 apart at every level
    spread = paired_difference({0: 12.0, 1: 53.0, 2: 92.0}, {0: 10.0, 1: 50.0, 2: 90.0})
    assert spread.p == pytest.approx(stats.ttest_1samp([2, 3, 2], 0).pvalue)
    assert verdict(spread, spread.p) == "higher"


def test_one_seed_and_equal_seeds_have_no_interval():
    assert mean_of([57.3]) == Mean(57.3, None, 1)
    assert mean_of([0.1 + 0.2, 0.3]).half is None, "rounding is no spread"
    assert mean_of([0.3, 0.3001]).half is not None
    for ours, theirs in ({0: 60.0}, {0: 50.0}), ({0: 60.3, 1: 80.3}, {0: 50.1, 1: 70.1}):
        found = paired_difference(ours, theirs)
        assert found.p is None
        assert verdict(found, *holm([found.p])) == "not distinguishable"


def test_holm_by_hand():
    """Four values: times 4, 3, 2, 1 in order; the last is raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([None, 0.02, None, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]


def test_the_rule_is_the_corrected_p():
    up, down = (Difference(Mean(sign * 2.0, 0.1, 3), 0.02) for sign in (1, -1))
    assert [verdict(up, p) for p in (0.049, 0.05, 0.2, None)] == ["higher", *["not distinguishable"] * 3]
    assert verdict(down, 0.01) == "lower"
    # a single comparison is told exactly where its interval leaves out 0
    draw = np.random.default_rng(0)
    words = set()
    for shift in np.linspace(-3, 3, 61):
        found = paired_difference(dict(enumerate(draw.normal(shift, 1, 4))), dict.fromkeys(range(4), 0.0))
        outside = not found.mean.low <= 0 <= found.mean.high
        words.add(verdict(found, *holm([found.p])))
        assert (verdict(found, *holm([found.p])) != "not distinguishable") == outside
    assert words == {"higher", "lower", "not distinguishable"}


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(1)
    means = [mean_of(list(draw.normal(10, 3, 3))) for _ in range(2000)]
    held = np.mean([m.low <= 10 <= m.high for m in means])
    assert abs(held - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_text():
    assert Mean(57.34, 0.81, 3).text() == "57.3 ± 0.8 (n = 3)"
    assert Mean(57.34, None, 1).text() == "57.3 (n = 1)"
    assert Mean(-0.1234, 0.05, 2).text(3) == "−0.123 ± 0.050 (n = 2)"
    assert Mean(1.26, 0.5, 4).text(signed=True) == "+1.3 ± 0.5 (n = 4)"


@pytest.mark.parametrize(("values", "words"), [([], "no value"), ([1.0, math.nan], "nan"), ([math.inf], "inf")])
def test_values_that_have_no_mean(values, words):
    with pytest.raises(UserError, match=words):
        mean_of(values)
    if values:
        with pytest.raises(UserError, match=words):
            paired_difference(dict(enumerate(values)), dict.fromkeys(range(2), 1.0))
