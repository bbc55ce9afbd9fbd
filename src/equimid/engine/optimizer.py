"""Optimizers, their schedules and gradient clipping. What changes with the step is a pure function of the step."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from equimid.engine.config import OptimConfig
from equimid.schedules import StepInfo

__all__ = ["build_optimizer", "clip_gradients", "set_rates"]


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer of the parameters of `module` that are trained, in one group, or in two where the 1-D ones differ.

    LARS is timm's. Against the one of Barlow Twins, with weight w, gradient g and decay d, it scales by
    0.001 |w| / (|g| + d |w| + 1e-8) instead of 0.001 |w| / |g + d w|: never more, and less by a fraction of at most
    2 d |w| / |g| (d is 1e-6). A tensor with g = 0 decays by lr d w here, by 0.001 lr w there.
    """
    groups = _groups(module, config)
    if config.name == "lars":
        # weights are adapted with and without weight decay
        lars: torch.optim.Optimizer = Lars(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            trust_coeff=0.001,
            always_adapt=True,
            foreach=True,
        )
        return lars
    # one pass over the memory where torch has one for the device (on a CPU about twice as fast as the list form)
    fusible = all(p.device.type in ("cpu", "cuda") for p in module.parameters() if p.requires_grad)
    kind: dict[str, Any] = {"fused": True} if fusible else {"foreach": True}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, **kind)


def _groups(module: nn.Module, config: OptimConfig) -> list[Any]:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if config.decay_1d and config.lr_1d is None:
        return list(trained.values())
    one_d = {name: p for name, p in trained.items() if p.ndim <= 1 or name.split(".")[-1] == "bias"}
    start = StepInfo()
    apart: dict[str, Any] = {
        "params": list(one_d.values()),
        "one_d": True,
        "lr": config.lr if config.lr_1d is None else config.lr_1d,
        "weight_decay": config.weight_decay_at(start, one_d=True),
    }
    if config.name == "lars":
        apart["always_adapt"] = config.decay_1d
    rest = {"params": [p for name, p in trained.items() if name not in one_d]}
    return [group for group in (rest, apart) if group["params"]]


def set_rates(optimizer: torch.optim.Optimizer, config: OptimConfig, when: StepInfo, batch_size: int) -> None:
    """Give every group the learning rate and the weight decay of a step."""
    for group in optimizer.param_groups:
        one_d = group.get("one_d", False)
        group["lr"] = config.lr_at(when, batch_size, one_d=one_d)
        group["weight_decay"] = config.weight_decay_at(when, one_d=one_d)


def clip_gradients(parameters: Iterable[Tensor], config: OptimConfig) -> None:
    """Scale the gradients down, in place, to `config.clip`: together, or each by itself (dino `utils.clip_gradients`).

    The ranks hold equal gradients, so each one clips alone.
    """
    if not config.clip:
        return
    if not config.clip_per_parameter:
        nn.utils.clip_grad_norm_(parameters, config.clip)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, (config.clip / (norms + 1e-6)).clamp(max=1).unbind())
