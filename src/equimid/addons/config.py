"""Settings of the add-ons, and the views that each of them needs. Importing this file does not import torch.

A new add-on is a class of settings and a module:

    @ADDONS.register
    @settings()
    class MineConfig(EmbeddingAddonConfig):      # weight, layer, pool
        name: ClassVar[str] = "mine"
        def build(self, embed_dim, plan): return Mine(self, embed_dim)

    class Mine(Addon):
        def forward(self, outputs): ...          # a scalar of the student's features

Register it where your program starts, or name it in your package's entry points under "equimid.addons". From then on
`mine.weight=0.5` is a setting like any other.
"""

from collections.abc import Callable
from dataclasses import field, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from equimid.addons.planning import ADDONS, AddonConfig, AddonContext, EmbeddingAddonConfig
from equimid.errors import UserError
from equimid.settings import setting, settings
from equimid.views.config import Photometric, check_scale
from equimid.views.plan import CentreView, CropView, ExtraView, PosedViews, ViewPlan, check_size

if TYPE_CHECKING:
    from equimid.addons.base import Addon

__all__ = ["ADDONS", "AugSelfConfig", "ESSLConfig", "EquiModConfig", "SERConfig", "STLConfig"]

Form = Annotated[
    Literal["comparison", "original"],
    setting(
        "of the loss: as in the SER paper's comparison (MoCo-v3's term both ways), or as in the original (NT-Xent)"
    ),
]
Width = Annotated[int, setting("", ge=1)]


def _colourless(view: CropView) -> bool:
    drawn = view.photometric
    return not drawn.jitter or not any((drawn.brightness, drawn.contrast, drawn.saturation, drawn.hue))


def _one_blur(view: CropView) -> bool:
    drawn = view.photometric
    return not drawn.blur or (drawn.blur == 1 and drawn.blur_sigma[0] == drawn.blur_sigma[1])


# of each target of AugSelf: whether a view draws one value for all images, in words, and what to set
_CONSTANT: dict[str, tuple[Callable[[CropView], bool], str, str]] = {
    "crop": (lambda view: view.scale[0] == 1, "the crop is the whole image", "views.crop_scale=[0.2,1.0]"),
    "colour": (_colourless, "no colour is jittered", "views.first.jitter=0.8 with views.first.brightness=0.4"),
    "flip": (lambda view: view.flip in (0, 1), "the flip is always the same", "views.flip=0.5"),
    "blur": (_one_blur, "the blur is always the same", "views.first.blur=0.5"),
}


@ADDONS.register
@settings("augself")
class AugSelfConfig(EmbeddingAddonConfig):
    """See `equimid.addons.augself`. A target of weight 0 has no predictor (original on ImageNet: 0.5, 0.5, 0, 0)."""

    name: ClassVar[str] = "augself"

    crop: Annotated[float, setting("weight of the target crop", ge=0)] = 0.5
    colour: Annotated[float, setting("weight of the target colour", ge=0)] = 0.5
    flip: Annotated[float, setting("weight of the target flip", ge=0)] = 0.0
    blur: Annotated[float, setting("weight of the target blur", ge=0)] = 0.0
    hidden: Annotated[int, setting("width of the predictors", ge=1)] = 512
    form: Annotated[
        Literal["comparison", "original"],
        setting("comparison: both features are the student's, with gradient (SER's comparison; the original on "
                "SimSiam); original: the second view's feature has no gradient, as in the original on MoCo: it is the "
                "momentum network's, or where there is none the student's own"),
    ] = "comparison"  # fmt: skip

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("crop, colour, flip and blur are all 0, so AugSelf predicts nothing; use augself.crop=0.5")

    @property
    def weights(self) -> dict[str, float]:
        """Of the targets that are predicted."""
        return {name: getattr(self, name) for name in _CONSTANT if getattr(self, name)}

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """The plan as it is.

        Raises:
            UserError: a target is the same for all images, so that there is nothing to predict.
        """
        plan = super().extend(plan, context)
        for name in self.weights:
            constant, why, remedy = _CONSTANT[name]
            if all(constant(view) for view in plan.crops[:2]):
                raise UserError(
                    f"augself.{name} is {getattr(self, name)}, but {why} in both views, so there is nothing to "
                    f"predict; use augself.{name}=0, or {remedy}"
                )
        return plan

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        from equimid.addons.augself import AugSelf

        return AugSelf(self, embed_dim, plan)


_CLEAN = 224 / 256  # of the shorter side: Resize 256, CenterCrop 224


@ADDONS.register
@settings("equimod")
class EquiModConfig(EmbeddingAddonConfig):
    """See `equimid.addons.equimod`."""

    name: ClassVar[str] = "equimod"

    temperature: Annotated[float, setting("tau", gt=0)] = 0.2
    hidden: Annotated[int, setting("width of the projector (the SER paper's comparison: 384)", ge=1)] = 2048
    dim: Annotated[int, setting("columns of what is compared", ge=1)] = 128
    form: Annotated[
        Form, setting("of the loss; original does not read whether a view was solarised: its augmentations have none")
    ] = "comparison"

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """Adds the clean view, which the base objective does not see."""
        plan = super().extend(plan, context)
        clean = ExtraView(CentreView(context.image_size, _CLEAN))
        return replace(plan, extra={**plan.extra, self.name: clean})

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        from equimid.addons.equimod import EquiMod

        return EquiMod(self, embed_dim, plan)


@ADDONS.register
@settings("essl")
class ESSLConfig(EmbeddingAddonConfig):
    """See `equimid.addons.essl`."""

    name: ClassVar[str] = "essl"

    size: Annotated[int, setting("side of the small crop, a multiple of the patch size", unit="pixels", ge=1)] = 96
    scale: Annotated[tuple[float, float], setting("range of its fraction of the image area")] = (0.05, 0.14)
    flip: Annotated[float, setting("probability of its horizontal flip", ge=0, le=1)] = 0.5
    photometric: Annotated[Photometric, setting("its colours")] = field(default_factory=lambda: Photometric(blur=0.1))
    widths: Annotated[
        tuple[Width, ...],
        setting("of the head's hidden layers; an empty list = (D, D, 256), the comparison's. The original has "
                "(2048, 2048, 128) beside SimCLR and (2048, 2048, 256) beside Barlow Twins"),
    ] = ()  # fmt: skip

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """A small crop beside the standard views, shown at its four turns.

        Raises:
            UserError: its size does not fit the patch or the image.
        """
        plan = super().extend(plan, context)
        if self.size > context.image_size:
            raise UserError(
                f"essl.size is {self.size}, larger than the image of {context.image_size} px; "
                f"use essl.size={context.image_size} or less"
            )
        check_size("essl.size", self.size, context.patch_size)
        view = CropView(self.size, self.scale, self.flip, self.photometric)
        return replace(plan, extra={**plan.extra, self.name: ExtraView(view, turns=4)})

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        from equimid.addons.essl import ESSL

        return ESSL(self, embed_dim)


@ADDONS.register
@settings("ser")
class SERConfig(AddonConfig):
    """See `equimid.addons.ser`."""

    name: ClassVar[str] = "ser"
    reads_posed: ClassVar[bool] = True

    temperature: Annotated[
        float, setting("tau of L_eq (the paper: 0.3 with MoCo-v3 and Barlow Twins, 0.5 with DINO)", gt=0)
    ] = 0.3
    layers: Annotated[
        tuple[int, ...], setting("blocks after which the map is regularised, each with its own projector", min_length=1)
    ] = (3,)
    layer_weights: Annotated[
        tuple[Annotated[float, setting("", ge=0)], ...],
        setting("of their losses; an empty list = the mean over layers"),
    ] = ()
    fraction: Annotated[
        float, setting("r, of the batch that is posed instead of cropped; at least two images", gt=0, le=1)
    ] = 0.02
    hidden: Annotated[int, setting("width of the projector", ge=1)] = 512
    area: Annotated[
        tuple[float, float], setting("range of a posed grid's area, as a fraction of the image's, within 1/16 to 16")
    ] = (0.7, 1.3)
    aspect: Annotated[tuple[float, float], setting("range of its height / width, within 1/16 to 16")] = (3 / 4, 4 / 3)
    grids: Annotated[
        int,
        setting("draw the posed grids from a fixed set of so many that stands for these ranges (few shapes to "
                "compile and to plan for); 0 = any grid, as the release", ge=0, le=1024),
    ] = 16  # fmt: skip
    complement: Annotated[bool, setting("the release's draw, in which every relative pose is a reflection")] = False
    source: Annotated[
        Literal["resize", "shared_crop"], setting("resize the whole image, or cut the release's shared crop first")
    ] = "resize"
    form: Annotated[
        Literal["canonical", "cross_view"],
        setting("canonical: the paper; cross_view: the release, with negatives in the other view only"),
    ] = "canonical"
    negatives: Annotated[
        Literal["images", "all"],
        setting("images: patches of other images (the paper); all: patches of the same image too, so that one vector "
                "repeated over the image is no optimum"),
    ] = "images"  # fmt: skip
    negative_distance: Annotated[
        int,
        setting("with negatives=all: patches of the same image within so many rows and columns of the partner show "
                "content that overlaps with it, and are no negatives", unit="patches", ge=0),
    ] = 1  # fmt: skip
    detached: Annotated[bool, setting("as the release gathers: L_eq is measured and trains nothing")] = False

    def __post_init__(self) -> None:
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers is {list(self.layers)}; name at least one layer, each once")
        if len(self.layer_weights) not in (0, len(self.layers)):
            raise ValueError(
                f"layer_weights is {list(self.layer_weights)} for the layers {list(self.layers)}; "
                "give one weight of 0 or more for each layer, or none"
            )
        for name in ("area", "aspect"):
            low, high = getattr(self, name)
            if not 1 / 16 <= low <= high <= 16:
                raise ValueError(f"{name} is {[low, high]}; it must be a range [low, high] within 1/16 to 16")

    @property
    def taps(self) -> tuple[int, ...]:
        return self.layers

    @property
    def trains(self) -> bool:
        return not self.detached

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """One posed view for every standard one, of its size.

        Raises:
            UserError: the batch cannot hold two posed images, or the views do not pair.
        """
        if context.batch < 2:
            raise UserError(
                f"SER needs at least two posed images in a batch, for negatives; the batch has {context.batch}: "
                "raise train.batch_size or lower train.accumulate"
            )
        sizes = tuple(view.size for view in plan.crops)
        if any(a != b for a, b in zip(sizes[::2], sizes[1::2], strict=False)):
            raise UserError(
                f"SER pairs views of one size, and here they are {plan.label}; use views.full=2 with small views"
            )
        side = min(sizes) // context.patch_size
        if self.negatives == "all" and self.negative_distance >= side - 1:
            way = f"ser.negative_distance={side - 2} or less, or " if side > 1 else ""
            raise UserError(
                f"ser.negative_distance is {self.negative_distance}, and on a map of {side} x {side} patches that "
                f"leaves no patch of the same image as a negative; use {way}ser.negatives=images"
            )
        posed = PosedViews(
            count=max(2, round(self.fraction * context.batch)),
            sizes=sizes,
            patch_size=context.patch_size,
            area=self.area,
            aspect=self.aspect,
            grids=self.grids,
            complement=self.complement,
            shared_crop=self.source == "shared_crop",
        )
        return replace(plan, posed=posed)

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        from equimid.addons.ser import SER

        return SER(self, embed_dim)


@ADDONS.register
@settings("stl")
class STLConfig(EmbeddingAddonConfig):
    """See `equimid.addons.stl`."""

    name: ClassVar[str] = "stl"

    temperature: Annotated[float, setting("tau of both losses", gt=0)] = 0.2
    trans_weight: Annotated[float, setting("w, of L_trans beside L_equi", ge=0)] = 0.1
    trans_dim: Annotated[int, setting("columns of t, and the width of g and q", ge=1)] = 128
    hidden: Annotated[int, setting("width of p", ge=1)] = 512
    dim: Annotated[int, setting("columns of what is compared", ge=1)] = 128
    form: Annotated[Form, setting("of both losses; see equimod.form")] = "comparison"

    def extend(self, plan: ViewPlan, context: AddonContext) -> ViewPlan:
        """The same views, aligned in pairs; the task rounds the posed images of an aligned plan up to whole pairs.

        Raises:
            UserError: an odd micro-batch.
        """
        plan = super().extend(plan, context)
        if context.batch % 2:
            raise UserError(
                f"stl pairs the images of a micro-batch, and it has {context.batch}: an odd number; "
                f"use {context.batch + 1} (train.batch_size / train.accumulate)"
            )
        return replace(plan, aligned=True)

    def build(self, embed_dim: int, plan: ViewPlan) -> "Addon":
        from equimid.addons.stl import STL

        return STL(self, embed_dim)
