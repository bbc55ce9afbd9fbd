"""FLOPs of a training step per image, counted by torch on the meta device: no weights, no time, attention unfused."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from equimid.config import Config
from equimid.poses import Pose
from equimid.task import Task
from equimid.views import FIELDS, Batch, ViewPlan, Views

__all__ = ["step_flops"]


def step_flops(config: Config, batch_size: int | None = None) -> float:
    """FLOPs (2 per multiply-add) per image of a step's forward and backward pass, one process holding the batch.

    Token maps of posed views are counted at their mean size, that of the upright image. Optimizer and EMA are not
    matrix products and not counted.

    Args:
        batch_size: instead of the recipe's.
    """
    if batch_size is not None:
        config = replace(config, train=replace(config.train, batch_size=batch_size, accumulate=1))
    plan, images = config.plan(), config.train.micro_batch
    with torch.device("meta"):
        task = Task(config.backbone, config.method, config.addons, plan, config.seed).to("meta")
        views = _views(plan, images)
        with FlopCounterMode(display=False) as counter:
            task(views).total.backward()
    return float(counter.get_total_flops()) / images


def _views(plan: ViewPlan, images: int) -> Views:
    posed = plan.posed.count if plan.posed else 0
    cropped = images - posed

    def blank(count: int, size: int) -> Tensor:
        return torch.empty(count, 3, size, size)

    drawn = len(plan.crops) + len(plan.extra)
    boxes, rows = torch.zeros(cropped, 5), torch.zeros(cropped, len(FIELDS))
    batch = Batch([], [boxes] * drawn, [rows] * drawn, [], [], torch.zeros(images), ())
    sizes = plan.posed.sizes if plan.posed else ()
    patch = plan.posed.patch_size if plan.posed else 1
    return Views(
        [blank(cropped, view.size) for view in plan.crops],
        [blank(posed, size) for size in sizes],
        [Pose.identity(posed, (size // patch, size // patch), "meta") for size in sizes],
        torch.zeros(posed, dtype=torch.int64),
        {name: [blank(cropped, extra.view.size)] * extra.turns for name, extra in plan.extra.items()},
        batch,
    )
