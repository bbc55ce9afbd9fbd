"""Laws of the group, and its action on images and maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from equimid.poses import Pose, sample_grid, sample_pose_pair, transport
from equimid.randomness import counted_generator
from equimid.testing import assert_equivariant

sides = st.integers(1, 6)


@st.composite
def poses(draw, n=3, grid=None):
    turns = draw(st.lists(st.integers(-5, 9), min_size=n, max_size=n))
    flip = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return Pose(torch.tensor(turns), torch.tensor(flip), grid or (draw(sides), draw(sides)))


@st.composite
def chains(draw, length):
    """A lattice map and poses that need no resize, one after the other; on rectangles all images turn alike."""
    h, w = draw(sides), draw(sides)
    x = torch.from_numpy(np.random.default_rng(h * 7 + w).normal(size=(3, 2, h, w)))
    chain = []
    for _ in range(length):
        if h == w:
            chain.append(draw(poses(grid=(h, w))))
            continue
        odd = draw(st.booleans())
        h, w = (w, h) if odd else (h, w)
        turns = torch.tensor([2 * draw(st.integers(0, 1)) + odd for _ in range(3)])
        chain.append(Pose(turns, torch.tensor([draw(st.booleans()) for _ in range(3)]), (h, w)))
    return x, chain


def reference(x, pose):
    """The definition, image by image, with torch's own flip and rot90."""
    done = []
    for image, turns, flip in zip(x, pose.turns.tolist(), pose.flip.tolist(), strict=True):
        image = image.flip(-1) if flip else image
        image = torch.rot90(image, turns, (-2, -1))[None]
        if image.shape[-2:] != pose.grid:
            image = F.interpolate(image, pose.grid, mode="bicubic", align_corners=False)
        done.append(image[0])
    return torch.stack(done)


@given(poses(), sides, sides)
def test_action_is_flip_then_turns_then_resize(pose, h, w):
    x = torch.from_numpy(np.random.default_rng(h + 10 * w).normal(size=(3, 2, h, w)))
    assert torch.allclose(pose.act(x), reference(x, pose), atol=1e-12)


@given(chains(1), st.sampled_from([torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64]))
def test_lattice_moves_values_bit_for_bit_in_every_dtype(chain, dtype):
    x, (pose,) = chain
    x = (x * 5).round().abs().to(dtype)
    posed = pose.act(x)
    assert posed.dtype == dtype
    for image, moved, turns, flip in zip(x, posed, pose.turns.tolist(), pose.flip.tolist(), strict=True):
        assert torch.equal(moved, torch.rot90(image.flip(-1) if flip else image, turns, (-2, -1)))


@given(chains(2))
def test_composition(chain):
    x, (q, p) = chain
    assert torch.equal((p @ q).act(x), p.act(q.act(x)))


@given(poses(), poses(), poses())
def test_associativity_and_identity(p, q, r):
    assert (p @ q) @ r == p @ (q @ r)
    identity = Pose.identity(3, p.grid)
    assert p @ identity == p
    assert identity @ p == p


@given(poses())
def test_inverse(p):
    identity = Pose.identity(3, p.grid)
    assert ~p @ p == identity
    assert p @ ~p == identity
    assert ~~p == p


@given(chains(1))
def test_transport_returns(chain):
    x, (p,) = chain
    upright = Pose.identity(3, tuple(x.shape[-2:]))
    assert torch.equal(transport(p.act(x), p, upright), x)


def test_eight_elements_are_distinct():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(8, 1, 3, 3)
    pose = Pose(torch.arange(8) % 4, torch.arange(8) >= 4, (3, 3))
    assert len({tuple(m.flatten().tolist()) for m in pose.act(x)}) == 8


@given(st.data())
@settings(max_examples=40)
def test_transport_carries_per_patch_linear_maps_exactly_on_the_lattice(data):
    """f(x) = a linear function of each patch that does not see the order of its pixels, on any grid."""
    h, w = data.draw(sides), data.draw(sides)
    p, q = data.draw(poses(grid=(h, h))), data.draw(poses(grid=(h, h)))
    if h != w:  # on rectangles: half turns and flips
        p = Pose(p.turns // 2 * 2, p.flip, (h, w))
        q = Pose(q.turns // 2 * 2, q.flip, (h, w))
    weight = torch.from_numpy(np.random.default_rng(3).normal(size=(5, 3)))
    images = torch.from_numpy(np.random.default_rng(h + w).normal(size=(3, 3, 4 * h, 4 * w)))

    def f(x):
        return torch.einsum("dc,nchw->ndhw", weight, F.avg_pool2d(x, 4))

    assert_equivariant(f, images, p, q, patch_size=4, tolerance=1e-12)


def smooth_images(n=2, size=112):
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    waves = [torch.sin(3 * x + 2 * y + i) + torch.cos(5 * y * (1 + i) / 2 - x) for i in range(3 * n)]
    return torch.stack(waves).view(n, 3, size, size)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("source_grid", "target_grid"), [((14, 14), (12, 16)), ((13, 16), (16, 12)), ((15, 12), (14, 14))]
)
def test_scaled_maps_of_an_identity_extractor_correlate(turns, flip, source_grid, target_grid):
    """Law 2: > 0.99 for every relative element and rectangular grids; less with a wrong turn."""
    images = smooth_images()
    source = Pose(torch.tensor([1, 2]), torch.tensor([True, False]), source_grid)
    target = Pose(source.turns + turns, source.flip ^ flip, target_grid)

    def correlation(pose):
        def f(x):
            return F.avg_pool2d(x, 8)

        carried = transport(f(source.act(images, 8)), source, target)
        posed = f(pose.act(images, 8))
        return float(torch.corrcoef(torch.stack([carried.flatten(), posed.flatten()]))[0, 1])

    assert correlation(target) > 0.99
    wrong = Pose(target.turns + 1, target.flip, target_grid)
    assert correlation(wrong) < correlation(target) - 0.05


def test_gradient_passes_through_transport():
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    source = Pose(torch.tensor([0, 2]), torch.tensor([True, False]), (4, 5))
    target = Pose(torch.tensor([1, 3]), torch.tensor([False, False]), (6, 3))
    assert torch.autograd.gradcheck(lambda x: transport(x, source, target), (maps,))


def test_integers_are_not_resized():
    pose = Pose(torch.tensor([0, 1]), torch.tensor([False, False]), (2, 3))
    with pytest.raises(TypeError, match="resize"):
        pose.act(torch.zeros(2, 1, 2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match="floating dtype"):
        Pose.identity(1, (4, 4)).act(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pose(torch.zeros(2, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), (2, 2)), "shape"),
        (lambda: Pose(torch.zeros(2), torch.zeros(2, dtype=torch.bool), (2, 2)), "int64"),
        (lambda: Pose.identity(2, (0, 2)), "positive"),
        (lambda: Pose.identity(2, (2, 2)) @ Pose.identity(3, (2, 2)), "do not compose"),
        (lambda: Pose.identity(2, (2, 2)).act(torch.zeros(3, 1, 2, 2)), "expected"),
        (lambda: transport(torch.zeros(2, 1, 3, 3), Pose.identity(2, (2, 2)), Pose.identity(2, (2, 2))), "grid is"),
    ],
)
def test_bad_input_says_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sampled_grids_keep_area_and_aspect():
    rng = counted_generator(0, "test")
    grids = np.array([sample_grid((14, 14), rng) for _ in range(2000)])
    area, aspect = grids.prod(1), grids[:, 0] / grids[:, 1]
    assert grids.min() >= 10
    assert grids.max() <= 18
    assert abs(area.mean() - 196) < 3
    assert aspect.min() >= 0.66
    assert aspect.max() <= 1.5
    assert (grids[:, 0] != grids[:, 1]).mean() > 0.5


def test_independent_poses_reach_every_relative_element_and_complement_only_reflections():
    first, second = sample_pose_pair(4000, (4, 4), counted_generator(0, "test"))
    relative = second @ ~first
    counts = torch.bincount(relative.turns + 4 * relative.flip, minlength=8)
    assert counts.min() > 400
    first, second = sample_pose_pair(4000, (4, 4), counted_generator(0, "test"), complement=True)
    assert (second @ ~first).flip.all()
    assert len(torch.unique(first.turns + 4 * first.flip)) == 4  # one draw of the quarter turn, half turns and flips


def test_sampling_is_a_function_of_its_counters():
    draw = [sample_pose_pair(5, (4, 4), counted_generator(1, "pose", step)) for step in (3, 3, 4)]
    assert draw[0][0] == draw[1][0]
    assert draw[0][1] == draw[1][1]
    assert draw[0][0] != draw[2][0]


def test_complement_draws_a_quarter_turn_for_each_view():
    relative = set()
    for step in range(40):
        first, second = sample_pose_pair(2, (4, 4), counted_generator(0, "test", step), complement=True)
        relative |= set(((second.turns - first.turns) % 4).tolist())
    assert relative == {0, 1, 2, 3}


def test_views_have_their_own_grid_and_aspect_is_log_uniform():
    pairs = [sample_pose_pair(1, (140, 140), counted_generator(0, "test", step)) for step in range(1000)]
    assert sum(p.grid != q.grid for p, q in pairs) > 900
    ratios = np.log([p.grid[0] / p.grid[1] for p, _ in pairs])
    assert abs(ratios.mean()) < 0.02
