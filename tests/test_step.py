"""The step: nothing in it waits for the device; recomputation and pruning change no gradient."""

import sys

import pytest
import torch
from bench_step import drawn_batch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from equimid.addons import AugSelfConfig, EquiModConfig, ESSLConfig, SERConfig, STLConfig, plan_views
from equimid.backbones import create_backbone
from equimid.engine.config import OptimConfig
from equimid.engine.optimizer import build_optimizer, clip_gradients, set_rates
from equimid.methods import BarlowTwinsConfig, DINOConfig, SimCLRConfig, SimSiamConfig, VICRegConfig
from equimid.schedules import StepInfo
from equimid.task import Task
from equimid.views import ViewsConfig, sample_poses, to_device_views
from helpers.tasks import HEADS, TINY, make_task

STEP = StepInfo(3, 10, 5)
SMALL = {"embed_dim": 24, "depth": 4, "num_heads": 3, "img_size": 32, "patch_size": 8}


def told(function):
    """Where in the package a torch function was called."""
    frame = sys._getframe(1)
    while frame and "/equimid/" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return f"{function} in a test"
    return f"{function} in {frame.f_code.co_filename.split('equimid/')[-1]}:{frame.f_lineno}"


class NoCopyFromPythonNumbers(TorchFunctionMode):
    """`torch.tensor(numbers, device=...)` copies from pageable memory, and a CUDA device would be waited for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            raise AssertionError(told(function.__name__))
        return function(*args, **kwargs)


class NoBlockingCopy(TorchDispatchMode):
    """A copy between host and device must be queued, not waited for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("device", args[0].device) != args[0].device:
            assert kwargs.get("non_blocking"), told("to")
        if function is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            assert kwargs.get("non_blocking") or (len(args) > 2 and args[2]), told("copy_")
        return function(*args, **kwargs)


def whole_step(task, plan, optimizer, batch, device):
    """What the loop does in a step, on the device alone."""
    config = OptimConfig(clip=1.0)
    set_rates(optimizer, config, STEP, 8)
    views = to_device_views(batch, plan, sample_poses(plan, 0, 3, 0, 1), device)
    task.update_teacher(STEP)
    task(views, STEP).total.backward()
    clip_gradients(task.parameters(), config)
    optimizer.step()
    optimizer.zero_grad()


CASES = {
    "mocov3+ser": (HEADS, {"ser": SERConfig(layers=(1, 3), hidden=16)}),
    "mocov3+ser of the release": (HEADS, {"ser": SERConfig(hidden=16, form="cross_view", complement=True)}),
    "dino": (DINOConfig(out_dim=12, hidden=8, bottleneck=6), {}),
    "barlow_twins+ser": (BarlowTwinsConfig(hidden=10, dim=5), {"ser": SERConfig(hidden=16)}),
    "simclr+essl": (SimCLRConfig(hidden=8, dim=6), {"essl": ESSLConfig(size=16)}),
    "simsiam+stl": (SimSiamConfig(), {"stl": STLConfig()}),
    "vicreg+augself": (VICRegConfig(hidden=8, dim=6), {"augself": AugSelfConfig(hidden=8)}),
    "mocov3+equimod": (HEADS, {"equimod": EquiModConfig()}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_asks_the_device_for_nothing(case):
    """On the meta device there is nothing to read: .item(), a tensor in an `if`, nonzero and the like raise."""
    method, addons = CASES[case]
    plan = plan_views(ViewsConfig(), TINY, addons, 8)
    batch = drawn_batch(plan, 8, 0)
    task = Task(TINY, method, addons, plan, 0).to("meta")
    optimizer = build_optimizer(task, OptimConfig())
    whole_step(task, plan, optimizer, batch, torch.device("meta"))
    with NoCopyFromPythonNumbers(), NoBlockingCopy():
        whole_step(task, plan, optimizer, batch, torch.device("meta"))


def test_the_guards_see_what_waits():
    with NoBlockingCopy(), pytest.raises(AssertionError, match="to in"):
        make_task(SERConfig(hidden=16)).to("meta")
    with NoCopyFromPythonNumbers(), pytest.raises(AssertionError, match="tensor in"):
        torch.tensor([1.0, 2.0], device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(2, device="meta").sum().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_a_step_on_cuda_never_waits(case):
    method, addons = CASES[case]
    plan, device = plan_views(ViewsConfig(), TINY, addons, 8), torch.device("cuda")
    batch = drawn_batch(plan, 8, 0).pin_memory()
    task = Task(TINY, method, addons, plan, 0).to(device)
    optimizer = build_optimizer(task, OptimConfig())
    whole_step(task, plan, optimizer, batch, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        whole_step(task, plan, optimizer, batch, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def network(**kwargs):
    torch.manual_seed(0)
    backbone = create_backbone("vit_tiny_patch16_224", 2, (3,), **SMALL, **kwargs).train()
    with torch.no_grad():
        torch.nn.init.normal_(backbone.cls_token)
    return backbone


def gradients(backbone, maps=True):
    """Of something that depends on every CLS and, if asked, on every place of the maps; and the loss."""
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(n, 3, h, w, generator=generator) for n, h, w in ((3, 32, 32), (2, 40, 24), (2, 24, 40))]
    torch.manual_seed(7)  # drop path
    features = backbone.forward_packed(batches)
    read = [x for f in features for x in (f.cls, *(f.maps.values() if maps else ()))]
    loss = torch.stack([(x * torch.linspace(-1, 2, x.numel()).view(x.shape)).mean() for x in read]).square().sum()
    return loss.detach(), torch.autograd.grad(loss, list(backbone.parameters()), allow_unused=not maps)


def assert_equal(found, expected):
    assert torch.allclose(found[0], expected[0], rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected[1] if gradient is not None)
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert (ours is None) == (theirs is None)
        assert theirs is None or float((ours - theirs).abs().max()) <= 1e-5 * largest


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_what_nothing_reads_of_the_last_block_is_left_out_in_training(drop):
    backbone = network(drop_path_rate=drop)
    tokens = []
    backbone.blocks[3].mlp.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[0]))
    found = gradients(backbone)
    backbone.whole_last_block = True
    assert_equal(found, gradients(backbone))
    assert tokens == [3 + 2 + 2, 3 * 17 + 2 * 16 + 2 * 16]
    backbone.whole_last_block = False
    backbone.eval()
    gradients(backbone)
    tapped = create_backbone("vit_tiny_patch16_224", 2, (4,), **SMALL).train()
    tapped.blocks[3].mlp.register_forward_hook(lambda _, inputs, __: tokens.append(inputs[0].shape[0]))
    assert tapped(torch.zeros(2, 3, 32, 32)).maps[4].shape == (2, 24, 4, 4)
    assert tokens[2:] == [3 * 17 + 2 * 16 + 2 * 16, 2 * 17]


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_recomputed_activations_give_the_same_gradients_from_less_memory(drop):
    backbone, saved = network(drop_path_rate=drop), []

    def count(tensor):
        saved[-1][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    results = []
    for recompute in (False, True):
        backbone.set_grad_checkpointing(recompute)
        saved.append({})
        kept = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
        torch.manual_seed(7)
        with kept:
            features = backbone.forward_packed([torch.ones(3, 3, 32, 32), torch.ones(2, 3, 40, 24)])
        del features
        results.append(gradients(backbone))
    assert_equal(results[1], results[0])
    whole, recomputed = (sum(sizes.values()) for sizes in saved)
    assert recomputed < 0.5 * whole
