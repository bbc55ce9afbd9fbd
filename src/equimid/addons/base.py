"""What every add-on is to the task, and the template of a new one:

    @ADDONS.register
    @dataclass(frozen=True)
    class MineConfig(EmbeddingAddonConfig):      # weight, layer, pool
        name: ClassVar[str] = "mine"
        def build(self, width, plan): return Mine(self, width)

    class Mine(Addon):
        def forward(self, seen): return ...      # a scalar of the student's features

Register it where your program starts, or name it in your package's entry points under "equimid.addons". From then on
`mine.weight=0.5` is a setting like any other.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from equimid.errors import UserError
from equimid.features import Features
from equimid.plugins import Registry
from equimid.views import ViewPlan, Views

__all__ = ["ADDONS", "Addon", "AddonConfig", "AddonContext", "EmbeddingAddonConfig", "StudentOutputs"]


class AddonContext(NamedTuple):
    """What a run gives an add-on to plan with.

    batch: images of a micro-batch over all ranks;  image_size, patch_size: px;  cls_layer: CLS enters after it
    """

    batch: int
    image_size: int
    patch_size: int
    cls_layer: int


@dataclass(frozen=True)
class StudentOutputs:
    """What an add-on sees of this rank's b1 cropped and b2 posed images. Features are the student's own but where said.

    crops:          per standard view, of b1 images
    extra:          {name: one Features per turn}, of the views that add-ons asked for, of the same b1 images
    posed:          per posed view, of b2 images
    momentum_posed: the same of the momentum network, without gradient; empty where there is none
    momentum_crops: of the first two standard views, of the momentum network; empty where there is none
    views:          poses, image_ids and what was drawn for every view
    """

    crops: Sequence[Features]
    extra: Mapping[str, Sequence[Features]] = field(default_factory=dict)
    posed: Sequence[Features] = ()
    momentum_posed: Sequence[Features] = ()
    momentum_crops: Sequence[Features] = ()
    views: Views = field(default_factory=lambda: Views([]))


class Addon(nn.Module):
    """A loss beside the base objective."""

    @abstractmethod
    def forward(self, outputs: StudentOutputs) -> Tensor:
        """Scalar, unweighted: over ranks its mean is the loss of the global batch, the mean of the gradients its
        gradient. Every parameter of the module takes part in it."""

    def regularised_maps(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """{"layer_3": (n, D, h, w)}: maps that should keep place, whose variance the run watches. {} = none."""
        return {}


@dataclass(frozen=True)
class AddonConfig:
    """Settings of an add-on.

    weight: lambda, of the add-on's loss beside the base loss; 0 keeps its views and trains nothing with them
    """

    name: ClassVar[str]
    reads_posed: ClassVar[bool] = False

    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise UserError(f"{self.name}.weight is {self.weight}; it must be a number of 0 or more")

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers whose maps it reads."""
        return ()

    @property
    def trains(self) -> bool:
        """Whether its loss has a gradient at all."""
        return True

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """The plan of the views with what this add-on needs.

        Raises:
            UserError: this run cannot give it; the nearest setting that can is told.
        """
        return plan

    def build(self, embed_dim: int, plan: ViewPlan) -> Addon:
        """The add-on for features of `embed_dim` columns and the views of `plan`."""
        raise UserError(f"the add-on {self.name!r} has no build(width, plan): write one that gives its Addon")


@dataclass(frozen=True)
class EmbeddingAddonConfig(AddonConfig):
    """An add-on that reads one vector per image.

    layer: 0 reads the final embedding; k reads what the network knows after block k (layer-decoupled)
    pool:  of layer k: the mean over its tokens, or its CLS (which must have entered below)
    """

    layer: int = 0
    pool: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 0:
            raise UserError(f"{self.name}.layer is {self.layer}; it must be 0 (the final embedding) or a layer from 1")

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.layer,) if self.layer else ()

    def read(self, features: Features) -> Tensor:
        """The vectors (b, D)."""
        if not self.layer:
            return features.cls
        return features.maps[self.layer].mean((2, 3)) if self.pool == "mean" else features.cls_at[self.layer]

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        if self.layer and self.pool == "cls" and self.layer <= context.cls_layer:
            raise UserError(
                f"{self.name}.pool=cls reads CLS after block {self.layer}, but CLS enters after block "
                f"{context.cls_layer}; use {self.name}.pool=mean, or backbone.cls_layer={self.layer - 1} or less"
            )
        cropped = context.batch - (plan.posed.count if plan.posed else 0)
        if cropped < 2:
            raise UserError(
                f"{self.name} reads cropped images, and {cropped} of {context.batch} are left beside the posed ones; "
                "lower ser.fraction or raise train.batch_size"
            )
        return plan


# the other groups of a configuration
_TAKEN = ("recipe", "seed", "data", "backbone", "views", "method", "addons", "optim", "train", "evaluation", "runtime")
ADDONS: Registry[type[AddonConfig]] = Registry("add-on", "equimid.addons", AddonConfig, _TAKEN)
