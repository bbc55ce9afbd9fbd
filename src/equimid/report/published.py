"""Numbers that the SER paper gives; nothing here was run by this library.

Source: arXiv 2603.06693. ImageNet-1k, ViT-S/16, 100 epochs, batch 2048; top-1 of a linear probe in percent. The paper
gives no intervals and one seed. `views`: how many of which size, the largest first: "2+4" are two large and four small.
"""

from dataclasses import dataclass

__all__ = ["CONDITIONS", "DIFFERENCES", "LAYERS", "LINEAR", "PUBLISHED", "SETS", "SOURCE", "Layer", "Published"]

SOURCE = "arXiv 2603.06693"
CONDITIONS = "ImageNet-1k, ViT-S/16, 100 epochs, batch 2048"


@dataclass(frozen=True)
class Published:
    """One trained network of the comparison, named as runs are: its method, its add-ons, its views."""

    label: str
    method: str
    addons: frozenset[str]
    views: str
    top1: tuple[float, float, float, float]  # of SETS


@dataclass(frozen=True)
class Layer:
    """SER at one layer on MoCo-v3. `rotation`: the paper's rotation equivariance, None where it gives none."""

    label: str
    linear: float
    rotation: float | None


LINEAR = "linear"
# the evaluation whose records are of the same test images, and what it is called
SETS = {
    LINEAR: "IN-1k linear",
    "imagenet_sketch": "ImageNet-Sketch",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
}


def _row(label: str, views: str, *top1: float, addons: tuple[str, ...] = ()) -> Published:
    first, sketch, v2, r = top1
    return Published(label, "mocov3", frozenset(addons), views, (first, sketch, v2, r))


PUBLISHED = (
    _row("MoCo-v3", "2", 68.44, 17.65, 56.54, 18.59),
    _row("MoCo-v3 + AugSelf", "2", 67.55, 13.30, 53.74, 17.62, addons=("augself",)),
    _row("MoCo-v3 + STL", "2", 65.49, 15.40, 55.43, 17.22, addons=("stl",)),
    _row("MoCo-v3 + SER", "2", 69.28, 17.68, 56.95, 18.95, addons=("ser",)),
    _row("MoCo-v3 + EquiMod", "3", 68.95, 14.81, 56.31, 16.54, addons=("equimod",)),
    _row("MoCo-v3 + E-SSL", "2+4", 70.60, 19.23, 58.33, 19.86, addons=("essl",)),
    _row("MoCo-v3 + SER", "2+4", 71.56, 19.76, 59.50, 20.27, addons=("ser",)),
)
LAYERS = (
    Layer("none (MoCo-v3)", 68.44, 0.804),
    Layer("layer 3", 69.28, 0.840),
    Layer("layer 9", 68.72, 0.888),
    Layer("layer 12", 68.18, 0.924),
    Layer("layer 3, weight 0 (control)", 68.82, None),
)
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
