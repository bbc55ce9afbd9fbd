"""The patch loss at scale: half precision, bits, memory, what it never reads, and its benchmark."""

import importlib
import json
import warnings

import pytest
import torch
import torch.nn.attention.flex_attention as flex_module
import torch.nn.functional as F
from bench_loss import bare_products, bench_loss, cost_law, exponents
from lib.flex_patch_ntxent import flex_patch_ntxent
from lib.options import LossOptions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from equimid.errors import UserError
from equimid.losses import patch_ntxent, patch_ntxent_cross_view

# the function of that name hides its module
patch_module = importlib.import_module("equimid.losses.patch_ntxent")

FORMS = [patch_ntxent, patch_ntxent_cross_view]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def tokens(patches, width=16, dtype=torch.float32, seed=0, device="cpu"):
    rng = torch.Generator().manual_seed(seed)
    both = torch.randn(2, patches, width, generator=rng, dtype=torch.float64)
    return tuple(z.to(device, dtype).requires_grad_() for z in both)


def dense(z0, z1, ids, temperature, cross_view=False):
    """The definition in float64, one whole matrix; no positives among the keys but the own."""
    z0, z1 = F.normalize(z0.double(), dim=1), F.normalize(z1.double(), dim=1)
    anchors, keys = (z0, z1) if cross_view else (torch.cat([z0, z1]),) * 2
    copies = len(anchors) // len(z0)
    s = anchors @ keys.T / temperature
    positives = (z0 * z1).sum(1).repeat(copies) / temperature
    s = s.masked_fill(ids.repeat(copies)[:, None] == ids.repeat(copies), float("-inf"))
    return (torch.logsumexp(torch.cat([positives[:, None], s], 1), 1) - positives).mean()


def check(form, z, ids, temperature, rtol):
    ours, expected = form(*z, ids, temperature), dense(*z, ids, temperature, form is patch_ntxent_cross_view)
    assert torch.allclose(ours.double(), expected, rtol=rtol)
    for found, right in zip(torch.autograd.grad(ours, z), torch.autograd.grad(expected, z), strict=True):
        assert float((found - right).abs().max()) <= rtol * float(right.abs().max())


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(patch_module, "TILES", {"cpu": (32, 64), "cuda": (32, 64)})


@pytest.fixture
def as_on_a_device(monkeypatch):
    """The code of a GPU, where the test runs."""
    monkeypatch.setattr(patch_module, "_on_host", lambda device: False)


def all_bf16(z, ids, temperature, form):
    """Value to 1e-3 of the float64 definition on the same tokens, gradients to the last bit of bf16."""
    ours, wide = form(*z, ids, temperature), [x.detach().double().requires_grad_() for x in z]
    expected = dense(*wide, ids, temperature, form is patch_ntxent_cross_view)
    assert torch.allclose(ours.double(), expected, rtol=1e-3, atol=0)
    for found, right in zip(torch.autograd.grad(ours, z), torch.autograd.grad(expected, wide), strict=True):
        assert found.dtype == torch.bfloat16
        error = (found.double() - right).abs()
        assert (error <= right.abs() * 2**-8 + 1e-3 * right.abs().max()).all()
        assert float(error.norm()) <= 2e-3 * float(right.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.3, 0.05])
def test_bf16_tokens_against_the_float64_definition(form, temperature, small_tiles):
    ids = torch.arange(200) // 9
    all_bf16(tokens(200, dtype=torch.bfloat16), ids, temperature, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.3, 0.018, 0.015, 0.002])
def test_every_temperature_in_float32(form, temperature, small_tiles):
    """Around the one where the maximum begins to be subtracted, and where exp alone would overflow."""
    check(form, tokens(150, 8), torch.arange(150) // 11, temperature, 2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("patches_of_an_image", [1, 7, 100])
def test_a_device_compares_ids_instead(form, patches_of_an_image, small_tiles, as_on_a_device):
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(1)) // patches_of_an_image
    check(form, tokens(200, dtype=torch.float64), ids, 0.3, 1e-9)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("patches_of_an_image", [1, 7, 100])
def test_images_in_any_order_and_of_any_size(form, patches_of_an_image, small_tiles):
    ids = torch.randperm(200, generator=torch.Generator().manual_seed(1)) // patches_of_an_image
    check(form, tokens(200, dtype=torch.float64), ids, 0.3, 1e-9)


def test_more_images_than_are_masked_one_by_one():
    ids = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    check(patch_ntxent, tokens(120, dtype=torch.float64), ids, 0.3, 1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_read_back_from_a_device(form):
    """On meta tensors every read of a value raises."""
    z = [torch.randn(3000, 8, device="meta", requires_grad=True) for _ in range(2)]
    for temperature in (0.3, 0.01):
        form(*z, torch.arange(3000, device="meta") // 100, temperature).backward()
    assert z[0].grad.shape == (3000, 8)


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_twice(form, small_tiles):
    ids = torch.randperm(300, generator=torch.Generator().manual_seed(1)) // 11
    found = []
    for _ in range(2):
        z = tokens(300)
        loss = form(*z, ids, 0.3)
        found.append([loss, *torch.autograd.grad(loss, z)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


class Allocations(TorchDispatchMode):
    """Elements of the largest piece of memory that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("temperature", [0.3, 0.01])
@pytest.mark.parametrize("on_device", [False, True])
def test_no_tensor_exceeds_the_tokens_of_both_views(form, temperature, on_device, small_tiles, monkeypatch):
    """The law of memory: M D, and tiles of a constant size; M^2 would be 16 times as much here."""
    if on_device:
        monkeypatch.setattr(patch_module, "_on_host", lambda device: False)
    for patches in (512, 1024):
        z = tokens(patches)
        with Allocations() as seen:
            form(*z, torch.arange(patches) // 50, temperature).backward()
        assert seen.largest <= max(2 * patches * 16, 32 * 64)


@pytest.mark.parametrize("tiles", [(32, 64), (7, 3), (1000, 1000)])
def test_tiles_hold_every_pair_once(tiles, monkeypatch):
    monkeypatch.setitem(patch_module.TILES, "cpu", tiles)
    held = torch.zeros(2, 100, 2, 100)
    for i, a, j, b in patch_module.symmetric_tiles(100, "cpu"):
        held[i, a, j, b] += 1
        if (i, a) != (j, b):
            held[j, b, i, a] += 1
    assert torch.equal(held, torch.ones(2, 100, 2, 100))


def test_products_of_the_loss_are_those_of_its_benchmark(small_tiles):
    """And FLOPs are counted: 2 D for every pair, half of the M^2 pairs and the tiles' diagonals, four products."""
    z, counted = tokens(320, 16), []
    products = bare_products([x.detach() for x in z])
    for run in (lambda: patch_ntxent(*z, torch.arange(320) // 50, 0.3).backward(), products):
        with FlopCounterMode(display=False) as counter:
            run()
        counted.append(counter.get_total_flops())
    diagonal, other = 2 * 10 * 32**2, (640**2 - 2 * 10 * 32**2) // 2
    assert counted == [2 * 16 * (3 * diagonal + 4 * other)] * 2


def test_a_view_without_gradient_costs_no_product_of_its_own(small_tiles):
    z0, z1 = tokens(320, 16)
    with FlopCounterMode(display=False) as counter:
        patch_ntxent(z0, z1.detach(), torch.arange(320) // 50, 0.3).backward()
    inside, between = (320**2 + 10 * 32**2) // 2, 320**2  # pairs within a view and across
    diagonal = 10 * 32**2
    forward = 2 * inside + between
    gradient = 2 * (inside - diagonal) + diagonal + between
    assert counter.get_total_flops() == 2 * 16 * (forward + inside + between + gradient)


def test_flex_is_the_same_loss_forward_and_backward(monkeypatch):
    monkeypatch.setattr(flex_module, "_validate_device", lambda *inputs: None)  # no gradient on the CPU, it says
    z, ids = tokens(30, dtype=torch.float64), torch.arange(30) // 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled
        flex = flex_patch_ntxent(*z, ids, 0.3, compiled=False)
    ours = patch_ntxent(*z, ids, 0.3)
    assert torch.allclose(flex, ours, rtol=1e-9)
    for found, right in zip(torch.autograd.grad(flex, z), torch.autograd.grad(ours, z), strict=True):
        assert torch.allclose(found, right, rtol=1e-8, atol=1e-12)


def test_benchmark_has_a_row_for_every_size():
    result = bench_loss(LossOptions(patches=(400, 800), width=16, repeats=2, device="cpu"))
    assert [(row["form"], row["patches"]) for row in result.rows] == [
        (form, patches) for patches in (400, 800) for form in ("tiles", "tiles, negatives=all")
    ]
    assert all(row["forward s"] > 0 and row["backward s"] > 0 and row["products s"] > 0 for row in result.rows)
    assert all(0 < row["share of peak"] < 2 for row in result.rows)
    assert result.rows[2]["dense GiB"] == 4 * 1600**2 / 2**30
    assert len([name for name in result.ratios if "loss / bare products" in name]) == 4
    assert len([name for name in result.ratios if "exponent" in name]) == 2
    assert result.rows[0]["products GFLOP"] == result.rows[1]["products GFLOP"] > 0
    assert "tiles, negatives=all, fp32 in, fp32 products / tiles, fp32 in, fp32 products, 800 patches" in result.ratios
    json.dumps(result.rows)
    assert "patches" in result.table()


def test_the_law_of_cost_is_found_again():
    sizes, width = [100, 1000, 5000], 8
    seconds = [3e-9 * m**2 * width + 2e-7 * m * width for m in sizes]
    assert cost_law(sizes, seconds, width) == pytest.approx((3e-9, 2e-7))
    assert cost_law(sizes, [2e-7 * m * width for m in sizes], width) == pytest.approx((0, 2e-7), abs=1e-15)
    assert list(exponents([10, 20, 80], [1.0, 4.0, 16.0]).values()) == pytest.approx([2, 1])


@pytest.mark.parametrize("options", [{"patches": (0,)}, {"patches": ()}, {"width": 0}, {"repeats": 0}])
def test_benchmark_refuses_sizes_that_are_none(options):
    with pytest.raises(UserError, match="1 or more"):
        bench_loss(LossOptions(**options))


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("form", FORMS)
def test_on_a_gpu_without_waiting_for_it(form):
    z, ids = tokens(3000, 128, torch.bfloat16, device="cuda"), torch.arange(3000, device="cuda") // 196
    form(*z, ids, 0.3).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        form(*z, ids, 0.3).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    all_bf16(z, ids, 0.3, form)


@pytest.mark.gpu
@NO_GPU
def test_compiled_flex_on_a_gpu():
    z, ids = tokens(3000, 128, torch.bfloat16, device="cuda"), torch.arange(3000, device="cuda") // 196
    flex, ours = flex_patch_ntxent(*z, ids, 0.3, dtype=torch.bfloat16), patch_ntxent(*z, ids, 0.3)
    assert torch.allclose(flex, ours, rtol=1e-3)
    for found, right in zip(torch.autograd.grad(flex, z), torch.autograd.grad(ours, z), strict=True):
        assert float((found - right).norm()) <= 1e-2 * float(right.norm())
