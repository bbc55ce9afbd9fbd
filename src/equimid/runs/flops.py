"""What a training step costs, counted by torch on the meta device: no weights, no time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from equimid.backbones import Backbone
from equimid.config import Config
from equimid.poses import Pose
from equimid.task import Task
from equimid.views import FIELDS, Batch, ViewBatch, ViewPlan, Views

__all__ = ["StepMemory", "step_flops", "step_memory"]


def step_flops(
    config: Config, batch_size: int | None = None, *, whole: bool = True, poses: Sequence[Pose] = ()
) -> float:
    """FLOPs (2 per multiply-add) per image of a step's forward and backward pass, one process holding the batch;
    attention unfused.

    Token maps of posed views are counted at their mean size, that of the upright image. Optimizer and EMA are not
    matrix products and not counted.

    Args:
        batch_size: instead of the recipe's.
        whole: of the network as it is published; False leaves out what training leaves out, the part of the last block
            that nothing reads.
        poses: one per posed view, whose grids are counted instead of the mean ones.
    """
    if batch_size is not None:
        config = replace(config, train=replace(config.train, batch_size=batch_size, accumulate=1))
    plan, images = config.plan(), config.train.micro_batch
    with torch.device("meta"):
        task = Task(config.backbone, config.method, config.addons, plan, config.seed).to("meta")
        for network in task.modules():
            if isinstance(network, Backbone):
                network.whole_last_block = whole
        views = _views(plan, images, grids=[pose.grid for pose in poses])
        with FlopCounterMode(display=False) as counter:
            task(views).total.backward()
    return float(counter.get_total_flops()) / images


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a process needs for a step.

    Attributes:
        weights:     of both networks and all heads, with gradients and the optimizer's state
        activations: what the forward pass keeps for the backward pass of a micro-batch
    """

    weights: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.activations


def step_memory(config: Config, ranks: int = 1, bf16: bool = False) -> StepMemory:
    """An estimate: without what single operations use on the way and without fragmentation. Attention is fused; in bf16
    the share is between that of fused attention and that of attention written out, as a CPU has it (`BF16_SHARE`).

    Args:
        ranks: processes that share the batch, each with whole weights (DDP).
    """
    plan, saved = config.plan(), dict[int, Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        task = Task(config.backbone, config.method, config.addons, plan, config.seed).to("meta")
        task.student.set_grad_checkpointing(config.runtime.checkpoint_activations)
        with _FusedAttention(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            task(_views(plan, config.train.micro_batch, ranks))
    held = {p.untyped_storage()._cdata for p in task.parameters()}
    kept = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in held)
    trained = sum(p.nbytes for p in task.parameters() if p.requires_grad)
    everything = sum(t.nbytes for t in [*task.parameters(), *task.buffers()])
    return StepMemory(everything + 3 * trained, int(kept * (BF16_SHARE if bf16 else 1)))


# Of the activations' bytes in float32, those kept under bf16 autocast: the residual stream and what the norms read
# stay float32. Counted on a ViT-S/16 at 224 px: 0.62 where attention is fused, 0.71 where a CPU writes it out (see
# `backbones.packed`); `tests/test_flops.py` counts four of its blocks.
BF16_SHARE = 0.67


class _Attention(torch.autograd.Function):
    """What fused attention keeps: its inputs, its output and a log-sum-exp per query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device=q.device))
        return out


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def _views(plan: ViewPlan, images: int, ranks: int = 1, grids: Sequence[tuple[int, int]] = ()) -> Views:
    """Those of the first rank, of a micro-batch over all ranks; grids: of posed views, by default upright squares."""
    posed = len(plan.positions(plan.posed.count, 0, ranks)) if plan.posed else 0
    images = len(plan.positions(images, 0, ranks))
    cropped = images - posed

    def blank(count: int, height: int, width: int) -> Tensor:
        return torch.empty(count, 3, height, width)

    drawn = len(plan.crops) + len(plan.extra)
    drawn_view = ViewBatch(torch.empty(0), torch.zeros(cropped, 5), torch.zeros(cropped, len(FIELDS)))
    batch = Batch([drawn_view] * drawn, [], torch.zeros(images), ())
    sizes = plan.posed.sizes if plan.posed else ()
    patch = plan.posed.patch_size if plan.posed else 1
    grids = grids or [(size // patch, size // patch) for size in sizes]
    return Views(
        [blank(cropped, view.size, view.size) for view in plan.crops],
        [blank(posed, patch * h, patch * w) for h, w in grids],
        [Pose.identity(posed, grid, "meta") for grid in grids],
        torch.zeros(posed, dtype=torch.int64),
        {name: [blank(cropped, extra.view.size, extra.view.size)] * extra.turns for name, extra in plan.extra.items()},
        batch,
    )
