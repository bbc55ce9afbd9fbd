"""The fixed set of posed grids stands for the continuous draw."""

from collections import Counter

import numpy as np
import pytest

from equimid.addons import SERConfig, plan_views
from equimid.errors import UserError
from equimid.poses import fixed_grids, sample_grid, sample_pose_pair
from equimid.randomness import counted_generator
from equimid.views import LocalViews, ViewsConfig, sample_poses
from helpers.tasks import TINY

EXPECTED = ((17, 14), (16, 14), [1, 2, 0, 0], [False, True, False, False])
RANGES = {"area": (0.7, 1.3), "aspect": (3 / 4, 4 / 3)}


def drawn(grid, count=20_000, **ranges):
    rng = np.random.default_rng(0)
    return np.array([sample_grid(grid, rng, **ranges) for _ in range(count)])


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (24, 24), (14, 10)])
@pytest.mark.parametrize("count", [1, 7, 16, 32])
def test_the_set_has_its_size_and_the_laws_mean_number_of_patches(grid, count):
    found = np.array(fixed_grids(grid, count))
    assert found.shape == (count, 2)
    expected = drawn(grid).prod(1).mean()
    tolerance = 0.01 if count > 7 else 0.05  # a few grids of whole patches cannot do better
    assert abs(found.prod(1).mean() / expected - 1) < tolerance


@pytest.mark.parametrize("ranges", [RANGES, {"area": (0.5, 1.0), "aspect": (1.0, 2.0)}])
def test_the_set_spreads_over_the_law_and_stays_in_its_range(ranges):
    law, found = drawn((14, 14), **ranges), np.array(fixed_grids((14, 14), 16, **ranges))
    for of in (lambda g: g.prod(1), lambda g: np.log(g[:, 0] / g[:, 1])):
        assert of(law).min() <= of(found).min()
        assert of(found).max() <= of(law).max()
        assert abs(of(found).mean() - of(law).mean()) < 0.1 * of(law).std()
        assert 0.8 < of(found).std() / of(law).std() < 1.15
    # area and aspect are independent in the law
    assert abs(np.corrcoef(found.prod(1), np.log(found[:, 0] / found[:, 1]))[0, 1]) < 0.25


def test_the_set_is_symmetric_where_the_range_of_aspects_is():
    grids = Counter(fixed_grids((14, 14), 16))
    assert grids == Counter((w, h) for h, w in grids.elements())
    assert len(grids) > 10
    lying = fixed_grids((14, 14), 16, (0.7, 1.3), (1.0, 2.0))
    assert all(h >= w for h, w in lying)


def test_grids_are_drawn_uniformly_and_apart_for_the_two_views():
    rng = counted_generator(0, "pose")
    pairs = [[pose.grid for pose in sample_pose_pair(1, (14, 14), rng, grids=4)] for _ in range(4000)]
    fixed = fixed_grids((14, 14), 4)
    for view in (0, 1):
        counts = Counter(pair[view] for pair in pairs)
        for grid, times in Counter(fixed).items():
            assert abs(counts[grid] / 4000 - times / 4) < 0.04
    same = sum(first == second for first, second in pairs) / 4000
    assert abs(same - sum((n / 4) ** 2 for n in Counter(fixed).values())) < 0.04


def test_without_a_set_the_draw_is_what_it_was():
    """Numbers of the draw before there were sets."""
    first, second = sample_pose_pair(4, (14, 14), counted_generator(3, "pose", 5))
    grids = [sample_grid((14, 14), rng) for rng in [counted_generator(3, "pose", 5)] for _ in range(2)]
    assert [first.grid, second.grid] == grids
    assert (first.grid, second.grid, first.turns.tolist(), second.flip.tolist()) == EXPECTED


def test_every_step_of_a_run_draws_from_the_sets_of_its_sizes():
    config = {"ser": SERConfig(grids=3)}
    plan = plan_views(ViewsConfig(local=LocalViews(count=2, size=16)), TINY, config, 8)
    seen = [[pose.grid for pose in sample_poses(plan, 0, step, 0, 1)] for step in range(40)]
    for view, side in enumerate((4, 4, 2, 2)):
        assert {grids[view] for grids in seen} == set(fixed_grids((side, side), 3))
    continuous = plan_views(ViewsConfig(), TINY, {"ser": SERConfig(grids=0)}, 8)
    assert continuous.posed.grids == 0
    assert len({pose.grid for step in range(60) for pose in sample_poses(continuous, 0, step, 0, 1)}) > 3


def test_a_number_that_is_no_size_of_a_set_is_refused():
    with pytest.raises(UserError, match=r"ser\.grids is -1"):
        SERConfig(grids=-1)
