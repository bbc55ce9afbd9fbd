"""The task: student, momentum network, one method, weighted add-ons; one packed pass; named losses."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equimid.addons import SER, SERConfig
from equimid.backbones import Backbone, BackboneConfig, Features, build_backbone
from equimid.errors import UserError
from equimid.methods import MoCoV3Config, build_method
from equimid.optim import ema_update_, momentum_copy
from equimid.randomness import counted_torch_seed
from equimid.views import ViewPlan, Views, ViewsConfig

__all__ = ["GradientWatch", "Losses", "Task", "plan_views"]


class Losses(NamedTuple):
    """total = base + sum of weight * add-on; `named` holds every part, unweighted.

    cls: (b, D) final embedding of the first view, for health; without gradient
    """

    total: Tensor
    named: dict[str, Tensor]
    cls: Tensor


@dataclass
class GradientWatch:
    """Norms of the gradients that reach the last tapped layer, read as they pass: from the blocks above it (the
    base objective alone) and from its tap (the add-on, weighted). A term without a gradient leaves no entry."""

    norms: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, tokens: Tensor) -> Tensor:
        """A view of the tokens whose gradient is noted under `name`."""
        branch = tokens.view_as(tokens)
        if branch.requires_grad:
            branch.register_hook(lambda gradient: self._note(name, gradient))
        return branch

    def _note(self, name: str, gradient: Tensor) -> None:
        self.norms[name] = torch.linalg.vector_norm(gradient.float())


def plan_views(
    views: ViewsConfig, backbone: BackboneConfig, ser: SERConfig | None, batch_size: int, patch_size: int
) -> ViewPlan:
    """What the method and the add-ons need of every (micro-)batch, united.

    Raises:
        UserError: the batch cannot hold the posed images.
    """
    posed = ser.posed_views(batch_size, backbone.image_size, patch_size) if ser else None
    return views.plan(backbone.image_size, posed)


class Task(nn.Module):
    """Everything that is trained. All weights are a function of `seed`.

    Raises:
        UserError: a layer lies outside the network; see `create_backbone`.
    """

    def __init__(self, backbone: BackboneConfig, method: MoCoV3Config, ser: SERConfig | None, seed: int) -> None:
        super().__init__()
        self.student = build_backbone(backbone, taps=ser.layers if ser else (), seed=seed)
        with counted_torch_seed(seed, "heads"):
            self.method = build_method(method, self.student.embed_dim)
            self.addons = nn.ModuleDict({"ser": SER(ser, self.student.embed_dim)} if ser else {})
        self.weights = {"ser": ser.weight} if ser else {}
        self.momentum: nn.Module | None = momentum_copy(self.student) if self.method.uses_momentum else None
        self.watch = GradientWatch()

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.student.patch_embed.patch_size[0])

    def follow(self, step: int, total: int) -> None:
        """Move the momentum network towards the student: the one EMA of a step."""
        if self.momentum is None:
            return
        coefficient = self.method.momentum_at(step, total)
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.momentum, self.student), *self.method.momentum_heads()]
        for follower, leader in pairs:
            ema_update_(follower, leader, coefficient)

    def forward(self, views: Views) -> Losses:
        """Losses of this rank's views; over ranks their mean is the loss of the global batch."""
        self.watch.norms.clear()
        batches = [*views.crops, *views.posed]
        posed = range(len(views.crops), len(batches))
        student = self.student.forward_packed(batches, mapped=posed, watch=self.watch)
        with torch.no_grad():
            momentum = _momentum_features(self.momentum, batches, posed)
        named = {self.method.name: self.method(_cls_per_view(student, views), _cls_per_view(momentum, views))}
        if "ser" in self.addons:
            named["ser"] = self.addons["ser"](
                [student[i].maps for i in posed],
                [momentum[i].maps for i in posed] if momentum else [],
                views.poses,
                views.image_ids,
            )
        total = named[self.method.name] + sum(weight * named[name] for name, weight in self.weights.items())
        cls = _cls_per_view(student, views)[0].detach()
        return Losses(total, {name: loss.detach() for name, loss in named.items()}, cls)


def _momentum_features(momentum: nn.Module | None, batches: list[Tensor], posed: range) -> list[Features]:
    if momentum is None:
        return []
    assert isinstance(momentum, Backbone)
    return momentum.forward_packed(batches, mapped=posed)


def _cls_per_view(features: list[Features], views: Views) -> list[Tensor]:
    """The method's batch of a view: its crops, then its posed images."""
    if not features:
        return []
    count = len(views.crops)
    if not views.posed:
        return [f.cls for f in features]
    if len(views.posed) != count:
        raise UserError(f"{count} standard views and {len(views.posed)} posed ones: the method needs as many of each")
    return [torch.cat([features[v].cls, features[count + v].cls]) for v in range(count)]
