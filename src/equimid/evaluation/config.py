"""Settings of the measurements."""

from dataclasses import field
from typing import Annotated, Literal, get_args

from equimid.settings import setting, settings

__all__ = ["DetectionConfig", "EquivarianceConfig", "EvaluationConfig", "RobustnessConfig", "SegmentationConfig"]

Rates = tuple[Annotated[float, setting("", gt=0)], ...]


def _each_once(name: str, values: tuple[object, ...]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"{name} is {list(values)}; it must name each value once")


@settings("evaluation.equivariance")
class EquivarianceConfig:
    """How equivariance is measured."""

    interpolation: Annotated[
        Literal["bicubic", "bilinear", "nearest"],
        setting("that resamples images and maps where a transform is no permutation"),
    ] = "bicubic"
    angles: Annotated[
        tuple[Annotated[float, setting("", ge=-180, le=180)], ...],
        setting("of the rotations, none of them 0; an empty list measures none", unit="degrees"),
    ] = (5.0, 10.0, 15.0, 30.0)
    probe_layers: Annotated[
        int, setting("layers, evenly spaced to the last, of the pose probe and of correspondence", unit="layers", ge=1)
    ] = 4
    correspondence_images: Annotated[int, setting("among which patches are searched", unit="images", ge=2)] = 64

    def __post_init__(self) -> None:
        _each_once("angles", self.angles)
        if 0 in self.angles:
            raise ValueError(f"angles is {list(self.angles)}; none of them may be 0")


# of `robustness.corruptions`, which reads no settings; the last four are apart, to choose settings by
Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
    "gaussian_blur", "spatter", "saturate",
]  # fmt: skip


@settings("evaluation.robustness")
class RobustnessConfig:
    """How robustness is measured."""

    kinds: Annotated[
        tuple[Corruption, ...], setting("of the generated corruptions; by default the 15 test kinds", min_length=1)
    ] = get_args(Corruption)[:15]
    severities: Annotated[
        tuple[Annotated[int, setting("", ge=1, le=5)], ...], setting("of the generated corruptions", min_length=1)
    ] = (1, 2, 3, 4, 5)
    images: Annotated[
        int,
        setting("test images that are corrupted or posed at most, drawn once for a seed; also of segmentation and "
                "detection", unit="images", ge=1),
    ] = 1000  # fmt: skip
    angles: Annotated[
        tuple[Annotated[int, setting("", ge=-360, le=360)], ...],
        setting("that images are turned by for the curve of geometric robustness", unit="degrees"),
    ] = tuple(range(0, 181, 15))
    alexnet_p: Annotated[
        str | None, setting("JSON file of AlexNet's flip rates and top-5 distances, for mFR and mT5D of ImageNet-P")
    ] = None

    def __post_init__(self) -> None:
        for name in ("kinds", "severities", "angles"):
            _each_once(name, getattr(self, name))


@settings("evaluation.detection")
class DetectionConfig:
    """How detection is trained on a frozen network: Faster R-CNN over a simple feature pyramid (ViTDet)."""

    steps: Annotated[int, setting("of training", unit="steps", ge=1)] = 500
    batch_size: Annotated[int, setting("images of a step", unit="images", ge=1)] = 4
    image_size: Annotated[int, setting("long side of the images", unit="pixels", ge=32)] = 320
    width: Annotated[int, setting("columns of the pyramid (256 in ViTDet)", ge=1)] = 64
    proposals: Annotated[int, setting("regions of an image that the heads see (1000 in ViTDet)", ge=1)] = 200
    anchor: Annotated[
        int,
        setting("side of the smallest anchors where a token is 16 wide; it doubles with each of the five levels", ge=1),
    ] = 16
    rate: Annotated[float, setting("peak learning rate of AdamW", gt=0)] = 1e-3
    weight_decay: Annotated[float, setting("of AdamW", ge=0)] = 0.05
    tested_on: Annotated[
        Literal["test", "val"], setting("val: to choose settings; VOC's val is not trained on then")
    ] = "test"


@settings("evaluation.segmentation")
class SegmentationConfig:
    """How linear segmentation is trained on frozen tokens."""

    epochs: Annotated[int, setting("of training", unit="epochs", ge=1)] = 20
    rates: Annotated[Rates, setting("learning rates that are trained at once", min_length=1)] = (
        0.003, 0.01, 0.03, 0.1, 0.3,
    )  # fmt: skip
    size: Annotated[
        int, setting("side of the square that a whole image is resized to; 0 = the network's own", unit="pixels", ge=0)
    ] = 0
    images: Annotated[
        int, setting("training images at most, drawn once for a seed: their tokens stay in memory", unit="images", ge=1)
    ] = 2000
    pixels: Annotated[int, setting("drawn of each image at each step", unit="pixels", ge=1)] = 1024


@settings("evaluation")
class EvaluationConfig:
    """How a network is measured."""

    network: Annotated[
        Literal["student", "momentum"], setting("which network is exported and measured (DINO: the momentum network)")
    ] = "student"
    crop: Annotated[
        float, setting("centre crop's fraction of the resized image (0.875: 224 of 256 px); 1 = the whole", gt=0, le=1)
    ] = 0.875
    knn_k: Annotated[int, setting("neighbours of the kNN probe", ge=1)] = 20
    knn_temperature: Annotated[float, setting("T of its votes, e^(cosine / T)", gt=0)] = 0.07
    linear_features: Annotated[
        Literal["cls", "last4"],
        setting("read by the linear probe: the final CLS (as MoCo-v3), or the CLS of the last four blocks, each "
                "through the final norm (as DINO and SER)"),
    ] = "cls"  # fmt: skip
    linear_epochs: Annotated[int, setting("of the linear probe", unit="epochs", ge=1)] = 100
    linear_rates: Annotated[
        Rates, setting("learning rates that are trained at once", unit="per 256 images", min_length=1)
    ] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    linear_batch: Annotated[int, setting("images of an SGD step, over all processes", unit="images", ge=1)] = 256
    linear_crops: Annotated[
        bool,
        setting("each epoch passes random crops of the images through the network, as published, instead of reading "
                "one feature of each; costs `linear_epochs` times as much"),
    ] = False  # fmt: skip
    held_out: Annotated[float, setting("fraction of the training images that chooses rate and epoch", gt=0, le=0.5)] = (
        0.1
    )
    fewshot_per_class: Annotated[
        tuple[Annotated[int, setting("", ge=1)], ...], setting("images of a class", unit="images", min_length=1)
    ] = (1, 5, 10)
    fewshot_draws: Annotated[int, setting("draws of these images", unit="draws", ge=1)] = 5
    mlp_width: Annotated[int, setting("hidden units of the two-layer probe", ge=1)] = 1024
    mlp_epochs: Annotated[int, setting("of the two-layer probe", unit="epochs", ge=1)] = 30
    mlp_rates: Annotated[Rates, setting("learning rates of AdamW", min_length=1)] = (0.0001, 0.0003, 0.001, 0.003)
    attentive_heads: Annotated[int, setting("heads of the attentive probe", ge=1)] = 8
    attentive_epochs: Annotated[int, setting("of the attentive probe", unit="epochs", ge=1)] = 10
    attentive_rates: Annotated[Rates, setting("learning rates of AdamW", min_length=1)] = (0.0003, 0.001, 0.003, 0.01)
    equivariance_images: Annotated[
        int, setting("that equivariance is measured on; other images are its reference", unit="images", ge=2)
    ] = 256
    equivariance: Annotated[EquivarianceConfig, setting("equivariance")] = field(default_factory=EquivarianceConfig)
    robustness: Annotated[RobustnessConfig, setting("robustness")] = field(default_factory=RobustnessConfig)
    detection: Annotated[DetectionConfig, setting("detection")] = field(default_factory=DetectionConfig)
    segmentation: Annotated[SegmentationConfig, setting("segmentation")] = field(default_factory=SegmentationConfig)
