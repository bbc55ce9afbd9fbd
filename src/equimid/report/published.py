"""Numbers that the SER paper gives, each with the settings that decide it; nothing here was run by this library.

Source: arXiv 2603.06693. ImageNet-1k, ViT-S/16 at 224 px, 100 epochs, batch 2048; top-1 in percent of a linear probe on
random crops. The paper gives no intervals and one seed. `views`: how many of which size, the largest first: "2+4" are
two large and four small.

A run stands beside a number if all its settings are the row's, and its probe and its test images the paper's; else
beside none. Not compared is what the paper does not fix or does not tell: the fraction of posed images, the weight (but
for 0), the rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CONDITIONS", "DIFFERENCES", "IMAGES", "LAYERS", "LINEAR", "METHOD", "PROBE", "PUBLISHED", "SETS", "SOURCE",
    "ImageSet", "Published",
]  # fmt: skip

SOURCE = "arXiv 2603.06693"
CONDITIONS = "ImageNet-1k, ViT-S/16 at 224 px, 100 epochs, batch 2048"
METHOD = "mocov3"  # of all rows
IMAGES = 1_281_167  # of ImageNet-1k, to train on
# details of a record whose linear probe is the paper's: on crops, CLS of the last four blocks, 50 epochs
PROBE: Mapping[str, Any] = {"crops": True, "features": "last4", "epochs": 50}

LINEAR = "linear"
Settings = Mapping[str, tuple[Any, ...]]  # {setting: the values that a row admits}; a missing setting is None


@dataclass(frozen=True)
class ImageSet:
    """Test images of a published number.

    images, classes: how many, where that tells them from others
    unknown:         what the paper does not say though it decides: nothing stands beside such numbers
    """

    title: str
    images: int | None = None
    classes: int | None = None
    unknown: str = ""


# by the evaluation whose records are of the same test images
SETS = {
    LINEAR: ImageSet("IN-1k linear", images=50_000),
    "imagenet_sketch": ImageSet("ImageNet-Sketch", classes=1000),
    "imagenet_v2": ImageSet("ImageNet-V2", classes=1000),
    # 18.59 % beside 17.65 % on Sketch: very likely among all 1,000
    "imagenet_r": ImageSet("ImageNet-R", unknown="whether predictions are among its 200 classes or among all 1,000"),
}


@dataclass(frozen=True)
class Published:
    """A trained network of the comparison.

    addons:   all that it has; METHOD is its base
    top1:     by evaluation, of SETS
    settings: what decides that a run is this row, beside its base and its add-ons
    control:  its add-ons have weight 0, else none has
    rotation: the paper's rotation equivariance, None where it gives none
    note:     what must be known where a run stands beside it
    """

    label: str
    addons: frozenset[str]
    views: str
    top1: Mapping[str, float]
    settings: Settings
    control: bool = False
    rotation: float | None = None
    note: str = ""


# EquiMod's third view and E-SSL's four are the add-ons' own: the settings of the views do not name them
_CONDITIONS: Settings = {
    "backbone.name": ("vit_small_patch16_224",), "backbone.image_size": (224,), "backbone.patch_size": (None, 16),
    "backbone.embed_dim": (None, 384), "backbone.depth": (None, 12), "backbone.num_heads": (None, 6),
    "views.full": (2,), "train.batch_size": (2048,), "train.epochs": (100,), "train.steps": (None, 0),
    "train.accumulate": (None, 1), "evaluation.network": (None, "student"), "evaluation.crop": (None, 0.875),
}  # fmt: skip
_AUGSELF: Settings = {
    "augself.form": ("comparison",), "augself.crop": (0.5,), "augself.colour": (0.5,), "augself.flip": (0,),
    "augself.blur": (0,),
}  # fmt: skip
_EQUIMOD: Settings = {"equimod.form": ("comparison",)}


def _ser(layer: int) -> Settings:
    return {
        "ser.layers": ([layer], layer), "ser.layer_weights": (None, []), "ser.temperature": (0.3,),
        "ser.form": ("canonical",), "ser.negatives": (None, "images"),  # None: there was one kind alone
        "ser.source": ("resize",), "ser.complement": (False,), "ser.detached": (False,),
    }  # fmt: skip


def _row(
    label: str,
    *top1: float,
    addon: str = "",
    views: str = "2",
    small: int = 0,
    cls_layer: int = 0,
    settings: Settings | None = None,
    **more: Any,
) -> Published:
    """top1: of SETS in order, maybe the first alone; small: views of the base method beside its two full ones."""
    # the add-on's settings first: a reader asks for them first
    decides = {**(settings or {}), "backbone.cls_layer": (cls_layer,), "views.local.count": (small,), **_CONDITIONS}
    if small:
        decides["views.local.size"] = (96,)
    numbers = dict(zip(SETS, top1, strict=False))
    return Published(label, frozenset({addon} if addon else ()), views, numbers, decides, **more)


_READING = "the paper does not say whether it reads the mean token of the layer or CLS after it; either stands here"

PUBLISHED = (
    _row("MoCo-v3", 68.44, 17.65, 56.54, 18.59, rotation=0.804),
    _row(
        "MoCo-v3 + AugSelf", 67.55, 13.30, 53.74, 17.62, addon="augself",
        settings={"augself.layer": (0,), **_AUGSELF},
    ),
    _row(
        "MoCo-v3 + STL", 65.49, 15.40, 55.43, 17.22, addon="stl",
        settings={"stl.layer": (0,), "stl.form": ("comparison",)},
    ),
    _row("MoCo-v3 + SER", 69.28, 17.68, 56.95, 18.95, addon="ser", cls_layer=3, settings=_ser(3), rotation=0.840),
    _row("MoCo-v3 + SER at layer 9", 68.72, addon="ser", cls_layer=9, settings=_ser(9), rotation=0.888),
    _row(
        "MoCo-v3 + SER at layer 12", 68.18, addon="ser", cls_layer=0, settings=_ser(12), rotation=0.924,
        note="CLS cannot enter after the last block: the released code has it from the start there, and crashes; what "
        "the paper's network was is not known",
    ),
    _row("MoCo-v3 + SER, weight 0 (control)", 68.82, addon="ser", cls_layer=3, settings=_ser(3), control=True),
    _row(
        "MoCo-v3 + AugSelf at layer 3", 68.23, addon="augself",
        settings={"augself.layer": (3,), "augself.pool": ("mean", "cls"), **_AUGSELF}, note=_READING,
    ),
    _row(
        "MoCo-v3 + EquiMod", 68.95, 14.81, 56.31, 16.54, addon="equimod", views="3",
        settings={"equimod.layer": (0,), **_EQUIMOD},
    ),
    _row(
        "MoCo-v3 + EquiMod at layer 3", 69.51, addon="equimod", views="3",
        settings={"equimod.layer": (3,), "equimod.pool": ("mean", "cls"), **_EQUIMOD}, note=_READING,
    ),
    _row(
        "MoCo-v3 + E-SSL", 70.60, 19.23, 58.33, 19.86, addon="essl", views="2+4",
        settings={"essl.layer": (0,), "essl.size": (96,)},
    ),
    _row(
        "MoCo-v3 + SER", 71.56, 19.76, 59.50, 20.27, addon="ser", views="2+4", small=4, cls_layer=3, settings=_ser(3),
    ),
)  # fmt: skip
# SER at one layer on two views, and what it is compared with
LAYERS = tuple(row for row in PUBLISHED if row.views == "2" and row.addons <= {"ser"})
# what is added, and what it changes
DIFFERENCES = (
    ("SER on DINO, linear top-1", "+0.26 points"),
    ("SER on Barlow Twins, linear top-1", "+0.68 points"),
    ("SER on MoCo-v3, ImageNet-C top-1", "+1.11 points"),
    ("SER on MoCo-v3, ImageNet-P top-1", "+1.22 points"),
    ("SER on MoCo-v3, COCO with a frozen network", "+1.7 mAP"),
    ("SER on MoCo-v3, training FLOPs", "1.008 times"),
    ("EquiMod at layer 3 in place of 12, linear top-1", "68.95 to 69.51 %"),
    ("AugSelf at layer 3 in place of 12, linear top-1", "67.55 to 68.23 %"),
)
