"""Compiled blocks: the values of eager ones, one graph for all grids and all blocks."""

import copy

import torch

from equimid.addons import SERConfig
from equimid.backbones import compile_blocks
from equimid.poses import fixed_grids
from helpers.tasks import make_task

GRIDS = list(dict.fromkeys(fixed_grids((8, 8), 16)))


def packs():
    """Crops and two posed views, on every pair of neighbouring grids of the fixed set."""
    generator = torch.Generator().manual_seed(0)
    for one, other in zip(GRIDS, GRIDS[1:] + GRIDS[:1], strict=True):
        yield [torch.randn(2, 3, 8 * h, 8 * w, generator=generator) for h, w in ((4, 4), one, other)]


def total(network, batches):
    """Something that depends on every CLS and on every place of every map."""
    features = network.forward_packed(batches)
    read = [x for f in features for x in (f.cls, *f.maps.values())]
    return torch.stack([(x * torch.linspace(-1, 2, x.numel()).view(x.shape)).mean() for x in read]).square().sum()


def gradients(network, batches):
    loss = total(network, batches)
    return loss.detach(), torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])


def assert_equal(found, expected):
    assert torch.allclose(found[0], expected[0], rtol=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected[1])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-5 * largest


def test_compiled_blocks_are_the_eager_ones_and_are_made_once_for_all_grids():
    eager = make_task(SERConfig(layers=(2,), hidden=8))
    with torch.no_grad():  # drawn at 1e-6, which a layer norm makes 1000 times as large, rounding included
        torch.nn.init.normal_(eager.student.cls_token, generator=torch.Generator().manual_seed(1))
    compiled = copy.deepcopy(eager)
    names = list(compiled.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled)
    assert list(compiled.state_dict()) == names
    for number, batches in enumerate(packs()):
        with torch._dynamo.config.patch(error_on_recompile=number >= 2), torch.no_grad():
            assert torch.allclose(total(compiled.momentum, batches), total(eager.momentum, batches), rtol=1e-5)
        with torch._dynamo.config.patch(error_on_recompile=number >= 2):
            found = gradients(compiled.student, batches)
        assert_equal(found, gradients(eager.student, batches))
    # two parts, with gradient and without
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4
    compiled.student.set_grad_checkpointing()
    assert_equal(gradients(compiled.student, batches), gradients(eager.student, batches))
