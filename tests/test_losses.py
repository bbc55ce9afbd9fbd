"""Laws of the losses, their gradients, their memory."""

import importlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from equimid.losses import (
    DINOLoss,
    barlow_twins_loss,
    info_nce,
    mocov3_loss,
    nt_xent,
    patch_ntxent,
    patch_ntxent_cross_view,
    simsiam_loss,
    vicreg_loss,
)
from equimid.precision import l2_normalize

# the function of that name hides its module
patch_module = importlib.import_module("equimid.losses.patch_ntxent")


def dense_patch_ntxent(z0, z1, ids, temperature):
    """The definition, anchor by anchor."""
    z = F.normalize(torch.cat([z0, z1]), dim=1)
    ids, m = torch.cat([ids, ids]), len(z0)
    losses = []
    for p in range(2 * m):
        pair = (p + m) % (2 * m)
        s = z @ z[p] / temperature
        others = s[ids != ids[p]]
        losses.append(torch.logsumexp(torch.cat([s[pair : pair + 1], others]), 0) - s[pair])
    return torch.stack(losses).mean()


def random_case(counts, width=8, dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    m = sum(counts)
    z0, z1 = (torch.randn(m, width, dtype=dtype, generator=rng, requires_grad=True) for _ in range(2))
    return z0, z1, torch.repeat_interleave(torch.arange(len(counts)) * 7, torch.tensor(counts))


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs, retain_graph=True)


@pytest.mark.parametrize("block", [(3, 5), (4, 2), (512, 1024)])
@pytest.mark.parametrize("temperature", [0.3, 0.07, 0.01])
@pytest.mark.parametrize("counts", [[4, 4, 4], [1, 7, 3, 2], [5, 5]])
def test_patch_ntxent_equals_the_double_loop(counts, temperature, block, monkeypatch):
    monkeypatch.setitem(patch_module.TILES, "cpu", block)
    z0, z1, ids = random_case(counts)
    ours, reference = patch_ntxent(z0, z1, ids, temperature), dense_patch_ntxent(z0, z1, ids, temperature)
    assert torch.allclose(ours, reference, rtol=1e-10)
    for found, expected in zip(gradients(ours, z0, z1), gradients(reference, z0, z1), strict=True):
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("block", [(3, 5), (4, 2), (512, 1024)])
def test_one_side_without_gradient_gets_none_and_leaves_the_other_right(block, monkeypatch):
    monkeypatch.setitem(patch_module.TILES, "cpu", block)
    z0, z1, ids = random_case([4, 3, 5])
    for live, still in ((z0, z1), (z1, z0)):
        pair = (live, still.detach()) if live is z0 else (still.detach(), live)
        (found,) = gradients(patch_ntxent(*pair, ids, 0.3), live)
        (expected,) = gradients(dense_patch_ntxent(z0, z1, ids, 0.3), live)
        assert torch.allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_gradcheck():
    z0, z1, ids = random_case([2, 3])
    assert torch.autograd.gradcheck(lambda a, b: patch_ntxent(a, b, ids, 0.3), (z0, z1))
    assert torch.autograd.gradcheck(lambda a, b: patch_ntxent_cross_view(a, b, ids, 0.3), (z0, z1))


def test_order_of_images_does_not_matter():
    """Ids need not be sorted: the blocks' shortcut must not be fooled."""
    z0, z1, ids = random_case([4, 4, 4])
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    one = patch_ntxent(z0, z1, ids, 0.3)
    assert torch.allclose(one, patch_ntxent(z0[shuffled], z1[shuffled], ids[shuffled], 0.3))


@pytest.mark.parametrize("n", [2, 5])
def test_identical_tokens_give_the_closed_form(n):
    """Law 5: L = log(1 + 2 (n - 1) P)."""
    patches = 6
    z = torch.ones(n * patches, 4)
    ids = torch.arange(n).repeat_interleave(patches)
    assert math.isclose(float(patch_ntxent(z, z, ids, 0.3)), math.log(1 + 2 * (n - 1) * patches), rel_tol=1e-5)


def test_unpaired_patches_of_one_image_are_absent():
    """Law 3: the loss does not feel the similarity of two unpaired patches of one image."""
    z0, z1, ids = random_case([3, 3], width=40)
    with torch.no_grad():  # orthogonal to everything but each other and their pairs
        for m in range(3):
            z0[m] = z1[m] = F.one_hot(torch.tensor(m), 40).double()
            z0[3 + m, :3] = z1[3 + m, :3] = 0
    before = float(patch_ntxent(z0, z1, ids, 0.3).detach())
    with torch.no_grad():
        z0[1] = z1[1] = (z0[0] + z0[1]) / 2  # nearer to patch 0 of its own image
    assert math.isclose(float(patch_ntxent(z0, z1, ids, 0.3).detach()), before, rel_tol=1e-12)
    with torch.no_grad():
        z0[4] = z0[0]  # nearer to a patch of the other image
    assert float(patch_ntxent(z0, z1, ids, 0.3).detach()) > before + 0.01


def test_one_image_alone_has_no_negatives():
    z0, z1, ids = random_case([4])
    loss = patch_ntxent(z0, z1, ids, 0.3)
    assert float(loss.detach()) == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients(loss, z0, z1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_computed_in_float32(dtype):
    """T10: no overflow, also inside autocast, with features of any scale."""
    z0, z1, ids = random_case([40] * 8, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = patch_ntxent(100 * z0.to(dtype), 100 * z1.to(dtype), ids, 0.3)
    assert loss.dtype == torch.float32
    assert math.isclose(float(loss.detach()), float(dense_patch_ntxent(z0, z1, ids, 0.3)), rel_tol=2e-2)


def test_memory_is_linear_in_the_patches():
    """8,192 patches a view: one similarity matrix is 1 GiB; forward and backward must stay far below it."""
    program = """
import resource, torch
from equimid.losses import patch_ntxent
m = 8192
z0, z1 = (torch.randn(m, 32, requires_grad=True) for _ in range(2))
ids = torch.arange(m) // 64
patch_ntxent(z0[:128], z1[:128], ids[:128], 0.3).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
patch_ntxent(z0, z1, ids, 0.3).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 100 * 1024, f"{int(run.stdout) / 1024:.0f} MiB extra"


def test_mocov3_loss_of_perfect_keys_falls_below_chance():
    q = torch.eye(8)
    chance = 2 * 2 * 0.2 * math.log(8)
    assert float(mocov3_loss(q, q, q, q, 0.2)) < 0.1 * chance
    same = torch.ones(8, 4)
    assert math.isclose(float(mocov3_loss(same, same, same, same, 0.2)), chance, rel_tol=1e-5)


def test_mocov3_keys_get_no_gradient():
    q1, q2, k1, k2 = (torch.randn(6, 4, requires_grad=True) for _ in range(4))
    mocov3_loss(q1, q2, k1, k2, 0.2).backward()
    assert q1.grad.abs().sum() > 0
    assert k1.grad is None
    assert k2.grad is None


@pytest.mark.parametrize(
    "call",
    [
        lambda z: patch_ntxent(z, z[:-1], torch.arange(4), 0.3),
        lambda z: patch_ntxent(z, z, torch.arange(3), 0.3),
        lambda z: patch_ntxent(z, z, torch.arange(4), 0.0),
        lambda z: patch_ntxent_cross_view(z, z, torch.arange(4), -1.0),
        lambda z: mocov3_loss(z, z, z, z[:-1], 0.2),
        lambda z: mocov3_loss(z, z, z, z, 0.0),
        lambda z: info_nce(z, z[0], 0.2),
        lambda z: nt_xent(z, z[:-1], 0.2),
        lambda z: nt_xent(z, z, 0.0),
        lambda z: barlow_twins_loss(z, z[:-1]),
        lambda z: vicreg_loss(z, z[:, :-1]),
        lambda z: simsiam_loss(z, z[:-1]),
        lambda z: DINOLoss(3)(z[:-1], z, 0.04),
        lambda z: DINOLoss(3)(z[:2], z, 0.04),
        lambda z: DINOLoss(5)(z, z, 0.04),
        lambda z: DINOLoss(3)(z, z, 0.0),
    ],
)
def test_bad_input(call):
    with pytest.raises(ValueError, match="found"):
        call(torch.from_numpy(np.ones((4, 3), dtype=np.float32)))


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: mocov3_loss(x, y, y, x, 0.2),
        lambda x, y: info_nce(x, y, 0.2),
        lambda x, y: nt_xent(x, y, 0.2),
        lambda x, y: DINOLoss(8)(x, y, 0.04),
        barlow_twins_loss,
        vicreg_loss,
        simsiam_loss,
    ],
)
def test_losses_ignore_autocast_and_widen_half_precision(loss):
    x, y = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    plain = loss(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(x, y), plain)
        halved = loss(x.bfloat16(), y.bfloat16())
    assert halved.dtype == torch.float32
    assert torch.equal(halved, loss(x.bfloat16().float(), y.bfloat16().float()))


def test_a_small_temperature_does_not_underflow_in_float32():
    z0, z1, ids = random_case([4, 4, 4], dtype=torch.float32)
    with torch.no_grad():  # every negative is far away, and the positives are too
        z0[:4] = z1[:4] = torch.eye(8)[0]
        z0[4:8] = z1[4:8] = torch.eye(8)[1]
        z0[8:] = torch.eye(8)[2]
        z1[8:] = -torch.eye(8)[2]
    assert torch.allclose(patch_ntxent(z0, z1, ids, 0.01), dense_patch_ntxent(z0, z1, ids, 0.01), rtol=1e-4)


def test_unit_rows_are_those_of_torch_and_so_is_their_gradient():
    x = torch.randn(6, 5, dtype=torch.float64)
    x[2], x[3] = 0, 1e-5 * x[3]
    weights = torch.randn_like(x)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    found, expected = l2_normalize(ours), F.normalize(theirs, dim=1)
    assert torch.equal(found, expected)
    for rows in (found, expected):
        (rows * weights).sum().backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-9)
    assert l2_normalize(x.bfloat16()).dtype == torch.float32
    upcast, narrow = (x.float().requires_grad_() for _ in range(2))
    (l2_normalize(upcast) * weights.float()).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        (l2_normalize(narrow) * weights.float()).sum().backward()
    assert torch.equal(upcast.grad, narrow.grad)
