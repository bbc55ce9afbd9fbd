"""Optimizers, their schedules and gradient clipping. What changes with the step is a pure function of the step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from timm.optim import Lars
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.schedules import StepInfo, cosine, dino_warmup_cosine, warmup_cosine

__all__ = ["OptimConfig", "build_optimizer", "clip_gradients", "set_rates"]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW as moco-v3 uses it, unless told otherwise. Rates are per 256 images of global batch.

    "1-D parameters" are biases and whatever has at most one dimension (the affine part of a norm).

    name:               adamw, or lars (SGD, every tensor's update scaled by its weight's norm)
    momentum:           of lars
    lr:                 learning rate at the end of warm-up
    weight_decay:       of the trained parameters
    weight_decay_end:   cosine per step from weight_decay to this; null = constant (DINO: 0.04 to 0.4)
    decay_1d:           false: no weight decay on 1-D parameters, and lars takes their gradients as they are
    lr_1d:              learning rate of 1-D parameters, on the same curve as lr (final_lr scales along); null = lr
    betas:              of adamw
    warmup_epochs:      linear from 0
    final_lr:           end of the cosine
    schedule:           mocov3: the step after the warm-up has the full rate; dino: the last step of the warm-up has it
    clip:               norm that the whole gradient is clipped to; 0 = no clipping
    clip_per_parameter: clip every parameter's gradient by itself, as DINO does: the direction of the whole changes
    """

    name: Literal["adamw", "lars"] = "adamw"
    momentum: float = 0.9
    lr: float = 1.5e-4
    weight_decay: float = 0.1
    weight_decay_end: float | None = None
    decay_1d: bool = True
    lr_1d: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_epochs: float = 40
    final_lr: float = 0.0
    schedule: Literal["mocov3", "dino"] = "mocov3"
    clip: float = 0.0
    clip_per_parameter: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "schedule"):
            value, known = getattr(self, name), get_args(get_type_hints(OptimConfig)[name])
            if value not in known:
                raise UserError(f"optim.{name} is {value}; choose one of: {', '.join(known)}")
        for name in ("lr", "weight_decay", "weight_decay_end", "lr_1d", "warmup_epochs", "final_lr", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"optim.{name} is {value}; it must be a number of 0 or more")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optim.momentum is {self.momentum}; it must be 0 or more and less than 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optim.betas is {self.betas}; give two numbers of 0 or more and less than 1")
        # a setting that nothing reads is refused, not ignored
        for name, reader in (("betas", "adamw"), ("momentum", "lars")):
            value, default = getattr(self, name), getattr(OptimConfig, name)
            if self.name != reader and value != default:
                raise UserError(
                    f"optim.{name} is {value}, but optim.name is {self.name} and only {reader} has {name}; "
                    f"set optim.name={reader} or leave optim.{name} at {default}"
                )
        if self.clip_per_parameter and not self.clip:
            raise UserError("optim.clip_per_parameter is true, but optim.clip is 0; set optim.clip to a norm, as 3")
        if self.lr_1d is not None and not self.lr:
            raise UserError("optim.lr_1d is set, but optim.lr is 0, whose curve it follows; set optim.lr above 0")

    def lr_at(self, when: StepInfo, batch_size: int, *, one_d: bool = False) -> float:
        """Learning rate of a step, for a global batch."""
        peak, end = self.lr, self.final_lr
        if one_d and self.lr_1d is not None:
            peak, end = self.lr_1d, self.final_lr * self.lr_1d / self.lr
        warmup = self.warmup_epochs * when.steps_per_epoch
        if self.schedule == "dino":
            return dino_warmup_cosine(when.step, when.total, round(warmup), peak, end) * batch_size / 256
        return warmup_cosine(when.step, when.total, warmup, peak, end) * batch_size / 256

    def weight_decay_at(self, when: StepInfo, *, one_d: bool = False) -> float:
        """Weight decay of a step."""
        if one_d and not self.decay_1d:
            return 0.0
        if self.weight_decay_end is None:
            return self.weight_decay
        return cosine(when.step, when.total, self.weight_decay, self.weight_decay_end)


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
