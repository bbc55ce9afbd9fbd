"""The settings that all add-ons share, their registry, and the views that a method and its add-ons need together."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from equimid.backbones.config import BackboneConfig
from equimid.errors import UserError
from equimid.plugins import Registry
from equimid.settings import setting, settings
from equimid.views.config import ViewsConfig
from equimid.views.plan import ViewPlan, standard_views

if TYPE_CHECKING:
    from torch import Tensor

    from equimid.addons.base import Addon
    from equimid.features import Features

__all__ = ["ADDONS", "AddonConfig", "AddonContext", "EmbeddingAddonConfig", "plan_views"]


class AddonContext(NamedTuple):
    """What a run gives an add-on to plan with.

    Attributes:
        batch:      images of a micro-batch over all ranks.
        image_size: side of a full view, pixels.
        patch_size: side of a patch, pixels.
        cls_layer:  CLS enters after this block.
    """

    batch: int
    image_size: int
    patch_size: int
    cls_layer: int


@settings()
class AddonConfig:
    """Settings of an add-on."""

    name: ClassVar[str] = ""
    reads_posed: ClassVar[bool] = False

    weight: Annotated[
        float,
        setting(
            "lambda, of the add-on's loss beside the base loss; 0 keeps its views and trains nothing with them", ge=0
        ),
    ] = 1.0

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
            UserError: this run cannot give it; the message names the nearest setting that can.
        """
        return plan

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        """The add-on for features of `embed_dim` columns and the views of `plan`."""
        raise UserError(f"the add-on {self.name!r} has no build(embed_dim, plan): write one that gives its Addon")


@settings()
class EmbeddingAddonConfig(AddonConfig):
    """An add-on that reads one vector per image."""

    layer: Annotated[
        int, setting("0 reads the final embedding; k reads what the network has after block k (layer-decoupled)", ge=0)
    ] = 0
    pool: Annotated[
        Literal["mean", "cls"],
        setting("of layer k: the mean over its tokens, or its CLS (which must have entered below)"),
    ] = "mean"

    @property
    def taps(self) -> tuple[int, ...]:
        return (self.layer,) if self.layer else ()

    def read(self, features: "Features") -> "Tensor":
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


def plan_views(
    views: ViewsConfig, backbone: BackboneConfig, addons: Mapping[str, AddonConfig], batch_size: int
) -> ViewPlan:
    """What the method and the add-ons need of every (micro-)batch, united.

    Raises:
        UserError: they do not go together, or the batch cannot hold them.
    """
    context = AddonContext(batch_size, backbone.image_size, backbone.resolved_patch_size, backbone.cls_layer)
    plan = standard_views(views, backbone.image_size, backbone.resolved_patch_size)
    posing = [name for name, addon in addons.items() if addon.reads_posed]
    if len(posing) > 1:
        raise UserError(f"{' and '.join(posing)} both pose images; leave one out, such as {posing[-1]}=null")
    # those that pose images first: what they leave is cropped
    for addon in sorted(addons.values(), key=lambda addon: not addon.reads_posed):
        plan = addon.extend(plan, context)
    if plan.posed and plan.posed.count % plan.unit:
        plan = replace(plan, posed=replace(plan.posed, count=plan.posed.count + 1))
    return plan
