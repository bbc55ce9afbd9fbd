"""One, two and three gloo processes on one global batch: same values, same gradients, in float64."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from equimid.addons import SERConfig
from equimid.backbones import BackboneConfig
from equimid.distributed import (
    CrossRankBatchNorm1d,
    gather_detached,
    gather_with_gradient,
    row_counts,
    row_offset,
    sum_with_gradient,
)
from equimid.losses import mocov3_loss, patch_ntxent, patch_ntxent_cross_view
from equimid.methods import MoCoV3Config
from equimid.poses import sample_pose_pair
from equimid.randomness import counted_generator
from equimid.schedules import StepInfo
from equimid.testing import assert_same_on_ranks, on_ranks
from equimid.views import Views
from helpers.tasks import make_task


def values(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def collectives(rank, ranks):
    """Gradients of W * (own share of a function of all rows) with respect to all rows."""
    everything = values(7, 3)
    rows = torch.arange(7)[rank::ranks]  # 7 rows never divide evenly over 2 or 3
    own = everything[rows].requires_grad_()
    gathered = gather_with_gradient(own)
    counts = row_counts(own)
    assert counts == [len(torch.arange(7)[r::ranks]) for r in range(ranks)]
    assert row_offset(own) == sum(counts[:rank])
    # gloo serves the CPU: no device is asked, and this one could not answer
    assert row_counts(own.to("meta")) == counts
    loss = ranks * (own @ gathered.T).exp().sum() / 100 + ranks * (sum_with_gradient(own.sum(0)) ** 3).sum() / ranks
    loss.backward()
    gradient = torch.zeros_like(everything)
    gradient[rows] = own.grad
    assert torch.equal(gather_detached(own.detach()), gathered.detach())
    return {"loss": loss.detach(), "gradient": gradient}


def batch_norm(rank, ranks):
    torch.manual_seed(0)
    layer = CrossRankBatchNorm1d(4).double()
    everything = values(12, 4)
    rows = (
        torch.arange(12)[rank::ranks] if ranks < 3 else torch.arange(12)[[slice(0, 5), slice(5, 6), slice(6, 12)][rank]]
    )
    x = everything[rows].requires_grad_()
    weights = values(12, 4, seed=1)[rows]
    loss = ranks * (layer(x) * weights).pow(3).sum()
    loss.backward()
    gradient, output = torch.zeros_like(everything), torch.zeros_like(everything)
    gradient[rows], output[rows] = x.grad, ranks * layer.eval()(x).detach()
    return {
        "loss": loss.detach(),
        "gradient": gradient,
        "scale": layer.weight.grad,
        "shift": layer.bias.grad,
        "running_mean": layer.running_mean,
        "running_var": layer.running_var,
        "eval": output,
    }


def test_batch_norm_on_one_process_is_torch_batch_norm():
    ours, theirs = CrossRankBatchNorm1d(5).double(), nn.BatchNorm1d(5).double()
    for step in range(3):
        x = values(8, 5, seed=step)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(a).pow(2).mul(x).sum().backward()
        theirs(b).pow(2).mul(x).sum().backward()
        assert torch.allclose(a.grad, b.grad, rtol=1e-10)
    for name, buffer in theirs.named_buffers():
        assert torch.allclose(dict(ours.named_buffers())[name], buffer), name
    assert torch.allclose(ours.eval()(x), theirs.eval()(x))


def losses(rank, ranks):
    counts = torch.tensor([3, 1, 4, 2, 5, 3])  # patches of six images
    ids = torch.repeat_interleave(torch.arange(6), counts)
    # images 0 1 2 | 3 4 5 over two ranks, 0 1 2 3 | - | 4 5 over three: uneven, one rank without patches
    owner = {1: [0] * 6, 2: [0, 0, 0, 1, 1, 1], 3: [0, 0, 0, 0, 2, 2]}[ranks]
    rows = torch.tensor([owner[i] == rank for i in ids])
    z0, z1 = (values(18, 5, seed=s)[rows].requires_grad_() for s in (0, 1))
    found = {}
    for name, right in (("both", z1), ("one side", z1.detach())):
        loss = patch_ntxent(z0, right, ids[rows], 0.3)
        (gradient,) = torch.autograd.grad(loss, z0)
        found[name] = loss.detach()
        found[f"{name}, gradient"] = torch.zeros(18, 5, dtype=torch.float64).index_put_(
            (rows.nonzero()[:, 0],), gradient
        )
    cross = patch_ntxent_cross_view(z0, z1, ids[rows], 0.3)
    found["cross view"] = cross.detach()
    for side, gradient in enumerate(torch.autograd.grad(cross, (z0, z1))):
        everyone = torch.zeros(18, 5, dtype=torch.float64)
        found[f"cross view, gradient {side}"] = everyone.index_put_((rows.nonzero()[:, 0],), gradient)
    # patches of the same image are negatives too: in a row, in an order of their own
    positions = torch.stack([torch.zeros(18, dtype=torch.int64), torch.arange(18) * 5 % 18], 1)[rows]
    for name, form in (("all", patch_ntxent), ("all, cross view", patch_ntxent_cross_view)):
        loss = form(z0, z1, ids[rows], 0.3, positions, 4)
        found[name] = loss.detach()
        for side, gradient in enumerate(torch.autograd.grad(loss, (z0, z1))):
            everyone = torch.zeros(18, 5, dtype=torch.float64)
            found[f"{name}, gradient {side}"] = everyone.index_put_((rows.nonzero()[:, 0],), gradient)
    mine = torch.arange(12)[rank::ranks] if ranks != 2 else torch.arange(12)[:5] if rank == 0 else torch.arange(12)[5:]
    q1, q2, k1, k2 = (values(12, 6, seed=s)[mine] for s in range(4))
    q1.requires_grad_()
    loss = mocov3_loss(q1, q2, k1, k2, 0.2)
    loss.backward()
    found["mocov3"] = loss.detach()
    found["mocov3, gradient"] = torch.zeros(12, 6, dtype=torch.float64).index_put_((mine,), q1.grad)
    return found


def parts(rank, ranks):
    found = {}
    for part in (collectives, batch_norm, losses):
        found |= {f"{part.__name__}: {name}": value for name, value in part(rank, ranks).items()}
    return found


def test_collectives_batch_norm_and_losses_over_uneven_ranks():
    assert_same_on_ranks(parts, rtol=1e-10)


def whole_step(rank, ranks):
    """Loss and every gradient of MoCo-v3 + SER under DDP; 5 posed images never divide evenly over 2 or 3 ranks."""
    backbone = BackboneConfig(
        name="vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=16, depth=3, num_heads=2, cls_layer=2
    )
    ser = SERConfig(layers=(1, 2), hidden=8)
    task = make_task(ser, backbone, MoCoV3Config(hidden=12, dim=6)).double()
    task.update_teacher(StepInfo(1, 10))
    wrapped = (
        DistributedDataParallel(task, find_unused_parameters=False, broadcast_buffers=False) if ranks > 1 else task
    )
    count, posed = 12, 5
    poses = sample_pose_pair(posed, (4, 4), counted_generator(0, "pose"))
    mine = torch.arange(count)[rank::ranks]
    cropped, turned = mine[mine >= posed], mine[mine < posed]
    images = [values(count, 3, 16, 16, seed=v) for v in range(2)]
    views = Views(
        [x[cropped] for x in images],
        [pose[turned].act(x[turned], 4) for x, pose in zip(images, poses, strict=True)],
        [pose[turned] for pose in poses],
        turned,
    )
    result = wrapped(views)
    result.total.backward()
    found = {f"gradient of {n}": p.grad for n, p in task.named_parameters() if p.requires_grad}
    found |= {f"buffer {n}": b for n, b in task.named_buffers() if b.is_floating_point()}
    return found | {f"loss {n}": loss for n, loss in result.named.items()}


def test_a_whole_step_over_ranks():
    assert_same_on_ranks(whole_step, rtol=1e-5)


def failing(rank, ranks):
    if rank == 1:
        raise RuntimeError("broken on purpose")
    return {"x": torch.ones(1)}


def test_a_failing_rank_is_reported():
    with pytest.raises(AssertionError, match="broken on purpose"):
        on_ranks(failing, 2)


def test_batch_norm_of_half_precision_is_computed_in_float32():
    x = (100 + torch.randn(64, 5, generator=torch.Generator().manual_seed(0))).bfloat16()
    ours = CrossRankBatchNorm1d(5)(x)
    assert ours.dtype == torch.bfloat16
    assert torch.allclose(ours.float(), nn.BatchNorm1d(5)(x.float()), atol=0.02)
