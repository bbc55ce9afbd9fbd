"""`ser.negatives=all`: patches of the same image are negatives, but for those that lie near the partner."""

import importlib
import math
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from equimid.addons import AddonContext, SERConfig, ser_loss
from equimid.errors import UserError
from equimid.losses import patch_ntxent, patch_ntxent_cross_view
from equimid.poses import Pose
from equimid.views import ViewsConfig
from equimid.views.plan import standard_views

# the function of that name hides its module
patch_module = importlib.import_module("equimid.losses.patch_ntxent")
FORMS = [patch_ntxent, patch_ntxent_cross_view]


def defined(z0, z1, ids, positions, distance, temperature, cross_view):
    """The definition, anchor by anchor and key by key."""
    views, losses = [F.normalize(z, dim=1) for z in (z0, z1)], []
    for view in (0,) if cross_view else (0, 1):
        for p in range(len(z0)):
            anchor = views[view][p]
            positive = anchor @ views[1 - view][p] / temperature
            terms = [positive]
            for other in (1,) if cross_view else (0, 1):
                for q in range(len(z0)):
                    near = max(abs(int(positions[p, i] - positions[q, i])) for i in (0, 1)) <= distance
                    if ids[p] != ids[q] or not near:
                        terms.append(anchor @ views[other][q] / temperature)
            losses.append(torch.logsumexp(torch.stack(terms), 0) - positive)
    return torch.stack(losses).mean()


def case(images=3, grid=(3, 4), width=6, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    cells = torch.cartesian_prod(*(torch.arange(side) for side in grid))
    m = images * len(cells)
    z0, z1 = (torch.randn(m, width, dtype=dtype, generator=rng, requires_grad=True) for _ in range(2))
    return z0, z1, torch.arange(images).repeat_interleave(len(cells)), cells.repeat(images, 1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", [0, 1, 2, 3])
@pytest.mark.parametrize("temperature", [0.3, 0.01])
@pytest.mark.parametrize("tiles", [(512, 1024), (5, 7)])
@pytest.mark.parametrize("on_device", [False, True])
def test_value_and_gradient_are_those_of_the_definition(form, distance, temperature, tiles, on_device, monkeypatch):
    monkeypatch.setitem(patch_module.TILES, "cpu", tiles)
    if on_device:
        monkeypatch.setattr(patch_module, "_on_host", lambda device: False)
    z0, z1, ids, positions = case()
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(1))
    for order in (slice(None), shuffled):
        z = [x.detach()[order].requires_grad_() for x in (z0, z1)]
        ours = form(*z, ids[order], temperature, positions[order], distance)
        expected = defined(*z, ids[order], positions[order], distance, temperature, form is patch_ntxent_cross_view)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
        for found, right in zip(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_a_distance_beyond_the_map_is_the_form_of_the_paper(form):
    z0, z1, ids, positions = case()
    assert torch.equal(form(z0, z1, ids, 0.3, positions, 3), form(z0, z1, ids, 0.3))
    assert (form(z0, z1, ids, 0.3, positions, 2) - form(z0, z1, ids, 0.3)).item() > 1e-3


def test_the_same_image_alone_has_negatives():
    z0, z1, ids, positions = case(images=1)
    assert patch_ntxent(z0, z1, ids, 0.3).item() == 0
    assert patch_ntxent(z0, z1, ids, 0.3, positions).item() > 0.1


def test_nothing_is_read_back_from_a_device():
    """On meta tensors every read of a value raises."""
    z0, z1 = (torch.randn(800, 8, device="meta", requires_grad=True) for _ in range(2))
    ids, positions = torch.arange(800, device="meta") // 100, torch.zeros(800, 2, dtype=torch.int64, device="meta")
    for form in FORMS:
        for temperature in (0.3, 0.01):
            form(z0, z1, ids, temperature, positions).backward()


def test_products_are_those_of_the_form_of_the_paper():
    z0, z1, ids, positions = case(8, (6, 6), dtype=torch.float32)
    counted = []
    for more in ((), (positions,)):
        with FlopCounterMode(display=False) as counter:
            patch_ntxent(z0, z1, ids, 0.3, *more).backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


@pytest.mark.parametrize(
    ("positions", "distance", "named"),
    [
        (torch.zeros(35, 2, dtype=torch.int64), 1, r"\(36, 2\)"),
        (torch.zeros(36, 2), 1, "float32"),
        (torch.zeros(36, 2, dtype=torch.int64), -1, "distance is -1"),
    ],
)
def test_wrong_positions_are_named(positions, distance, named):
    z0, z1, ids, _ = case()
    for form in FORMS:
        with pytest.raises(ValueError, match=named):
            form(z0, z1, ids, 0.3, positions, distance)


# --- the optimum of the paper's form


def simplex(n):
    """n unit vectors as far from each other as they can be."""
    return F.normalize(torch.eye(n, dtype=torch.float64) - 1 / n, dim=1)


def local_map(n, h, w):
    """An exactly equivariant map: the colours of smooth pictures, each patch its own."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 4, 4, generator=rng, dtype=torch.float64)
    return F.interpolate(coarse, (h, w), mode="bicubic").flatten(2).mT.reshape(-1, 3)


def test_one_vector_per_image_is_an_optimum_of_the_papers_form_alone():
    """The numbers of docs/methods.md: 32 images of 8 x 9 patches, temperature 0.3."""
    n, h, w, temperature = 32, 8, 9, 0.3
    ids = torch.arange(n).repeat_interleave(h * w)
    positions = torch.cartesian_prod(torch.arange(h), torch.arange(w)).repeat(n, 1)
    collapsed, local = simplex(n).repeat_interleave(h * w, 0), local_map(n, h, w)
    # what no map with orthogonal negatives goes below
    orthogonal = math.log(1 + 2 * (n - 1) * h * w * math.exp(-1 / temperature))
    paper = {name: float(patch_ntxent(z, z, ids, temperature)) for name, z in (("one", collapsed), ("local", local))}
    assert round(orthogonal, 2) == 5.08
    assert round(paper["one"], 2) == 4.97
    assert paper["local"] > orthogonal > paper["one"]
    # every patch its own direction: a map that keeps place, and could not win before
    own = torch.eye(n * h * w)
    everything = {
        name: float(patch_ntxent(z.float(), z.float(), ids, temperature, positions))
        for name, z in (("one", collapsed), ("own", own))
    }
    assert everything["own"] < everything["one"] - 0.5
    # a hundred steps from the collapsed map: the paper's form keeps it, the other leaves it
    for more, kept in (((), True), ((positions[: 8 * 72],), False)):
        z = collapsed[: 8 * 72] + 1e-3 * torch.randn(8 * 72, n, generator=torch.Generator().manual_seed(0)).double()
        z.requires_grad_()
        optimizer = torch.optim.SGD([z], lr=20.0)
        for _ in range(100):
            loss = patch_ntxent(z, z, ids[: 8 * 72], temperature, *more)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        unit = F.normalize(z.detach(), dim=1).unflatten(0, (8, 72))
        inside = float((unit - unit.mean(1, keepdim=True)).square().sum(2).mean())
        assert (inside < 1e-3) == kept, inside


# --- as an add-on


def test_the_add_on_gives_the_positions_of_the_grid():
    maps = [torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(v)).double() for v in range(2)]
    upright = Pose.identity(3, (4, 4))
    ids, cells = torch.arange(3).repeat_interleave(16), torch.cartesian_prod(*[torch.arange(4)] * 2).repeat(3, 1)
    rows = [x.flatten(2).mT.flatten(0, 1) for x in maps]
    found = ser_loss(
        torch.nn.Identity(), maps, [upright, upright], torch.arange(3), 0.3, negatives="all", negative_distance=2
    )
    torch.testing.assert_close(found, patch_ntxent(*rows, ids, 0.3, cells, 2))
    with pytest.raises(ValueError, match="negatives is 'every'"):
        ser_loss(torch.nn.Identity(), maps, [upright, upright], torch.arange(3), 0.3, negatives="every")


@pytest.mark.parametrize(("distance", "refused"), [(1, False), (2, False), (3, True), (9, True)])
def test_a_distance_that_leaves_no_negatives_is_refused(distance, refused):
    config, plan = SERConfig(negatives="all", negative_distance=distance), standard_views(ViewsConfig(), 32, 8)
    setting = AddonContext(8, 32, 8, 3)
    if not refused:
        assert config.extend(plan, setting).posed is not None
        return
    with pytest.raises(UserError, match=re.escape(f"negative_distance is {distance}")) as error:
        config.extend(plan, setting)
    assert "4 x 4" in str(error.value)
    assert "negative_distance=2" in str(error.value)


def test_a_negative_distance_below_zero_is_refused():
    with pytest.raises(UserError, match=r"ser\.negative_distance is -1"):
        SERConfig(negative_distance=-1)


class LiveMemory(TorchDispatchMode):
    """The most bytes of tensors that live at one time, of those that operations returned."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known:
                key, size = x.untyped_storage()._cdata, x.untyped_storage().nbytes()
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(x, self.free, key, size)
        return out

    def free(self, key, size):
        if key in self.known:
            self.known.discard(key)
            self.now -= size


def test_memory_is_that_of_the_form_of_the_paper():
    z0, z1, ids, positions = case(24, (14, 14), 32, dtype=torch.float32)
    peaks = []
    for more in ((), (positions,)):
        with LiveMemory() as seen:
            patch_ntxent(z0, z1, ids, 0.3, *more).backward()
        z0.grad = z1.grad = None
        peaks.append(seen.peak)
    assert peaks[0] > 2 * z0.numel() * 4, "what is counted is not nothing"
    assert peaks[1] < 1.1 * peaks[0]
