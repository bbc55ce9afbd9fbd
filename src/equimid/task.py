"""The task: student, momentum network, one method, weighted add-ons; one packed pass; named losses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from equimid.addons import Addon, AddonConfig, StudentOutputs
from equimid.backbones import Backbone, BackboneConfig, build_backbone, without_drop_path
from equimid.ema import ema_update_, momentum_copy
from equimid.errors import UserError
from equimid.features import Features
from equimid.methods import Method, MethodConfig
from equimid.randomness import counted_torch_seed
from equimid.schedules import StepInfo
from equimid.views import ViewPlan, Views

__all__ = ["GradientWatch", "Losses", "Task"]

Addons = Mapping[str, AddonConfig]
_START = StepInfo()


class Losses(NamedTuple):
    """total = base + sum of weight * add-on; `named` holds every part, unweighted.

    Attributes:
        cls:  (b, D) final embedding of the first view, for health; without gradient
        maps: {"layer_3": (n, D, h, w)} that an add-on regularises, likewise
    """

    total: Tensor
    named: dict[str, Tensor]
    cls: Tensor
    maps: dict[str, Tensor] = {}  # noqa: RUF012  (never written to)


@dataclass
class GradientWatch:
    """Norms of the gradients that reach the last tapped layer, read as they pass: from the blocks above it ("stream",
    what reads the final embedding) and from its tap ("taps", what reads that layer, weighted). A term without a
    gradient leaves no entry."""

    norms: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, tokens: Tensor) -> Tensor:
        """A view of the tokens whose gradient is noted under `name`."""
        branch = tokens.view_as(tokens)
        if branch.requires_grad:
            branch.register_hook(lambda gradient: self._note(name, gradient))
        return branch

    def _note(self, name: str, gradient: Tensor) -> None:
        self.norms[name] = torch.linalg.vector_norm(gradient.float())


class Task(nn.Module):
    """Everything that is trained: backbone, base objective, add-ons, momentum network. All weights are a function of
    `seed`.

    Args:
        backbone, method, addons: settings; no add-ons by default.
        plan: the views that the add-ons were planned with (`equimid.addons.plan_views`); needed with add-ons.

    Raises:
        UserError: a layer lies outside the network; see `create_backbone`.
        ValueError: add-ons without a plan.

    Example: MoCo-v3 alone, on two batches of augmented images (b, 3, H, W).
        >>> first, second = torch.randn(2, 4, 3, 96, 96)
        >>> task = Task(BackboneConfig(image_size=96, name="vit_tiny_patch16_224", cls_layer=0), MoCoV3Config())
        >>> step = StepInfo(step=0, total=1000, steps_per_epoch=100)
        >>> task.update_teacher(step)
        >>> losses = task(Views([first, second]), step)
        >>> losses.total.backward()
    """

    def __init__(
        self,
        backbone: BackboneConfig,
        method: MethodConfig,
        addons: Addons | None = None,
        plan: ViewPlan | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        addons = addons or {}
        if addons and plan is None:
            raise ValueError(f"the add-ons {', '.join(addons)} need the plan of the views; give plan=plan_views(...)")
        self.configs = dict(addons)
        taps = sorted({layer for addon in addons.values() for layer in addon.taps})
        self.student = build_backbone(backbone, taps, seed=seed)
        for layer in taps:
            read = any(layer in addon.taps and addon.trains for addon in addons.values())
            self.student.tap_norms[str(layer)].requires_grad_(read)
        self.method_name = method.name
        with counted_torch_seed(seed, "heads"):
            self.method: Method = _built(method.build(self.student.embed_dim), Method, method.name)
        self.addons = nn.ModuleDict()
        for name, addon in addons.items():
            with counted_torch_seed(seed, "addon " + name):
                self.addons[name] = _built(addon.build(self.student.embed_dim, cast(ViewPlan, plan)), Addon, name)
        self.momentum: nn.Module | None = None
        if self.method.uses_momentum:
            self.momentum = without_drop_path(momentum_copy(self.student))
        self.watch = GradientWatch()

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self.student.patch_embed.patch_size[0])

    @property
    def watched(self) -> dict[str, str]:
        """{what reads it, such as "base" or "ser": the key in `watch`} at the last tapped layer. What an add-on reads
        below that layer does not pass there."""
        last = max(self.student.taps, default=0)
        if not last:
            return {}
        above = [name for name, addon in self.configs.items() if not addon.taps]
        here = [name for name, addon in self.configs.items() if last in addon.taps]
        return {"+".join(["base", *above]): "stream", "+".join(here): "taps"}

    def update_teacher(self, when: StepInfo) -> None:
        """Move the momentum network towards the student: the one EMA of a step."""
        if self.momentum is None:
            return
        coefficient = self.method.momentum_at(when)
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.momentum, self.student), *self.method.momentum_heads()]
        for teacher, student in pairs:
            ema_update_(teacher, student, coefficient)

    def forward(self, views: Views, when: StepInfo = _START) -> Losses:
        """Losses of this rank's views; over ranks their mean is the loss of the global batch."""
        self.watch.norms.clear()
        outputs, cls = self._student(views)
        with torch.no_grad():
            crops, posed = self._momentum(views)
        outputs = replace(outputs, momentum_posed=posed, momentum_crops=crops)
        momentum_cls = _joined(crops, posed[: len(crops)])
        named = {self.method_name: _scalar(self.method_name, self.method(cls, momentum_cls, when))}
        named |= {name: _scalar(name, addon(outputs), self.configs[name].trains) for name, addon in self.addons.items()}
        total = named[self.method_name] + sum(self.configs[name].weight * named[name] for name in self.addons)
        maps: dict[str, Tensor] = {}
        for addon in self.addons.values():
            maps |= {name: m.detach() for name, m in cast(Addon, addon).regularised_maps(outputs).items()}
        return Losses(total, {name: loss.detach() for name, loss in named.items()}, cls[0].detach(), maps)

    def _student(self, views: Views) -> tuple[StudentOutputs, list[Tensor]]:
        """What the add-ons see, and the method's batch of every view: its crops, then its posed images."""
        extra = [images for turns in views.extra.values() for images in turns]
        features = iter(self._features(self.student, views.crops, views.posed, extra))
        crops, posed = _take(features, len(views.crops)), _take(features, len(views.posed))
        others = {name: _take(features, len(turns)) for name, turns in views.extra.items()}
        return StudentOutputs(crops, others, posed, views=views), _joined(crops, posed)

    def _momentum(self, views: Views) -> tuple[list[Features], list[Features]]:
        """Of the two full views, and of the posed ones."""
        if self.momentum is None:
            return [], []
        features = iter(self._features(self.momentum, views.crops[:2], views.posed, []))
        return _take(features, len(views.crops[:2])), _take(features, len(views.posed))

    def _features(
        self, network: nn.Module, crops: list[Tensor], posed: list[Tensor], extra: list[Tensor]
    ) -> list[Features]:
        """One packed pass, with maps of the views whose maps an add-on reads."""
        assert isinstance(network, Backbone)
        read_posed = any(addon.reads_posed for addon in self.configs.values())
        read_cropped = any(addon.taps and not addon.reads_posed for addon in self.configs.values())
        reads = [read_cropped] * len(crops) + [read_posed] * len(posed) + [read_cropped] * len(extra)
        mapped = [i for i, wanted in enumerate(reads) if wanted]
        watch = self.watch if network is self.student else None
        return network.forward_packed([*crops, *posed, *extra], mapped, watch)


def _built(module: Any, kind: type, name: str) -> Any:
    """What a configuration built, checked: methods and add-ons come from other packages too."""
    if not isinstance(module, kind):
        raise UserError(f"build() of {name!r} gave {type(module).__name__}; expected a {kind.__name__}")
    return module


def _scalar(name: str, loss: object, trains: bool = True) -> Tensor:
    """A loss, checked likewise."""
    if not isinstance(loss, Tensor) or loss.ndim:
        shape = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"the loss of {name!r} is {shape}; expected a tensor without dimensions")
    if trains and torch.is_grad_enabled() and not loss.requires_grad:
        raise UserError(f"the loss of {name!r} has no gradient; compute it from the student's features")
    return loss


def _take(features: Iterator[Features], count: int) -> list[Features]:
    return [next(features) for _ in range(count)]


def _joined(crops: Sequence[Features], posed: Sequence[Features]) -> list[Tensor]:
    if not posed:
        return [f.cls for f in crops]
    if len(posed) != len(crops):
        raise UserError(f"{len(crops)} standard views and {len(posed)} posed ones: the method needs as many of each")
    return [torch.cat([f.cls, p.cls]) for f, p in zip(crops, posed, strict=True)]
