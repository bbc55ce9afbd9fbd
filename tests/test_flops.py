"""The estimate of a step's memory against what a real step keeps."""

from dataclasses import replace

import pytest
import torch
from bench_step import drawn_batch

from equimid.backbones import packed_forward as packed
from equimid.recipes import recipe
from equimid.runs.flops import BF16_SHARE, step_memory
from equimid.task import Task
from equimid.views import sample_poses, to_device_views


def small(batch=8, fraction=0.25, side=96):
    """Four blocks of a ViT-S/16, MoCo-v3 with SER; its heads are narrow."""
    config = recipe("ser-imagenet")
    return replace(
        config,
        backbone=replace(config.backbone, depth=4, image_size=side),
        method=replace(config.method, hidden=64, dim=16),
        addons={"ser": replace(config.addons["ser"], fraction=fraction, area=(1.0, 1.0), aspect=(1.0, 1.0))},
        train=replace(config.train, batch_size=batch, accumulate=1),
    )


def kept(config, bf16=False):
    """Bytes that the forward pass of a real step keeps for the backward pass."""
    plan, found = config.plan(), dict[int, int]()
    task = Task(config.backbone, config.method, config.addons, plan, 0)
    task.student.set_grad_checkpointing(config.runtime.checkpoint_activations)
    views = to_device_views(
        drawn_batch(plan, config.train.batch_size, 0), plan, sample_poses(plan, 0, 0, 0, 1), torch.device("cpu")
    )
    held = []

    def keep(tensor):
        held.append(tensor)  # else another one may get its place
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        task(views)
    weights = {p.untyped_storage().data_ptr() for p in task.parameters()}
    return sum(size for place, size in found.items() if place not in weights)


@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_estimated_as_a_step_keeps_them(recompute):
    config = small()
    config = replace(config, runtime=replace(config.runtime, checkpoint_activations=recompute))
    assert step_memory(config).activations == pytest.approx(kept(config), rel=0.05)


@pytest.mark.parametrize("written_out", [0, packed._WRITTEN_OUT])
def test_the_share_of_bf16_is_that_of_a_real_step(written_out, monkeypatch):
    """At 224 px: of few tokens the copies of the weights are a larger part."""
    monkeypatch.setattr(packed, "_WRITTEN_OUT", written_out)
    config = small(side=224)
    assert kept(config, bf16=True) / kept(config) == pytest.approx(BF16_SHARE, abs=0.05)


def test_weights_count_gradients_and_the_optimizer_of_what_is_trained():
    config = small()
    task = Task(config.backbone, config.method, config.addons, config.plan(), 0)
    sizes = [(4 * p.numel(), p.requires_grad) for p in task.parameters()]
    sizes += [(b.numel() * b.element_size(), False) for b in task.buffers()]
    assert step_memory(config).weights == sum(size * (4 if trained else 1) for size, trained in sizes)


@pytest.mark.parametrize("fraction", [0.25, 0.75, 1.0])
def test_a_rank_has_its_part_of_the_cropped_and_of_the_posed_images(fraction):
    whole, half = step_memory(small(16, fraction)), step_memory(small(16, fraction), ranks=2)
    assert half.activations == pytest.approx(whole.activations / 2, rel=0.02)
    assert half.activations == pytest.approx(step_memory(small(8, fraction)).activations, rel=0.02)
    assert half.weights == whole.weights
