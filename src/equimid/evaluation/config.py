"""How a run is measured."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from equimid.errors import UserError

__all__ = ["DetectionConfig", "EquivarianceConfig", "EvaluationConfig", "RobustnessConfig", "SegmentationConfig"]


@dataclass(frozen=True)
class EquivarianceConfig:
    """How equivariance is measured.

    interpolation:   that resamples images and maps where a change is no permutation
    angles:          of the rotations, degrees; none measures none
    probe_layers: how many layers, evenly spaced to the last, poses are read back from and patches searched in
    correspondence_images: images among which patches are searched
    """

    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    angles: tuple[float, ...] = (5.0, 10.0, 15.0, 30.0)
    probe_layers: int = 4
    correspondence_images: int = 64

    def __post_init__(self) -> None:
        if not all(0 < abs(angle) <= 180 for angle in self.angles) or len(set(self.angles)) < len(self.angles):
            raise UserError(
                f"evaluation.equivariance.angles is {self.angles}; they must lie in [-180, 180], none 0 and each once"
            )
        if self.probe_layers < 1:
            raise UserError(f"evaluation.equivariance.probe_layers is {self.probe_layers}; it must be 1 or more")
        if self.correspondence_images < 2:
            raise UserError(
                f"evaluation.equivariance.correspondence_images is {self.correspondence_images}; it must be 2 or more"
            )


# of `robustness.corruptions`, which reads no settings; the last four are apart, to choose settings by
Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression", "speckle_noise",
    "gaussian_blur", "spatter", "saturate",
]  # fmt: skip


@dataclass(frozen=True)
class RobustnessConfig:
    """How robustness is measured.

    kinds:      of the generated corruptions; by default the 15 test kinds
    severities: of them, 1 to 5
    images:     at most that many test images are corrupted or posed, drawn once for a seed; segmentation and detection
                pose as many
    angles:     degrees that images are turned by for the curve of geometric robustness, -360 to 360
    alexnet_p:  JSON file of AlexNet's flip rates and top-5 distances, which mFR and mT5D of ImageNet-P need
    """

    kinds: tuple[Corruption, ...] = get_args(Corruption)[:15]
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    images: int = 1000
    angles: tuple[int, ...] = tuple(range(0, 181, 15))
    alexnet_p: str | None = None

    def __post_init__(self) -> None:
        known = get_args(Corruption)
        wrong = [kind for kind in self.kinds if kind not in known]
        if wrong:
            raise UserError(f"evaluation.robustness.kinds has {wrong[0]!r}; there are {', '.join(known)}")
        if not self.severities or not set(self.severities) <= {1, 2, 3, 4, 5}:
            raise UserError(f"evaluation.robustness.severities is {self.severities}; they must be among 1, 2, 3, 4, 5")
        for name in ("kinds", "severities"):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise UserError(f"evaluation.robustness.{name} must be one or more, each once")
        if self.images < 1:
            raise UserError(f"evaluation.robustness.images is {self.images}; it must be 1 or more")
        if not all(-360 <= angle <= 360 for angle in self.angles) or len(set(self.angles)) < len(self.angles):
            raise UserError(f"evaluation.robustness.angles is {self.angles}; they must lie in [-360, 360], each once")


@dataclass(frozen=True)
class DetectionConfig:
    """How detection is trained on a frozen network: Faster R-CNN over a simple feature pyramid (ViTDet).

    steps:        of training
    batch_size:   images of a step
    image_size:   long side of the images, pixels
    width:        columns of the pyramid (256 in ViTDet)
    proposals:    regions of an image that the heads see (1000 in ViTDet)
    anchor:       side of the smallest anchors where a token is 16 wide; it doubles with each of the five levels
    rate:         peak learning rate of AdamW
    weight_decay: of it
    tested_on:    "test", or "val" to choose settings: then VOC's val is not trained on
    """

    steps: int = 500
    batch_size: int = 4
    image_size: int = 320
    width: int = 64
    proposals: int = 200
    anchor: int = 16
    rate: float = 1e-3
    weight_decay: float = 0.05
    tested_on: Literal["test", "val"] = "test"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "width", "proposals", "anchor"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.detection.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.image_size < 32:
            raise UserError(f"evaluation.detection.image_size is {self.image_size}; it must be 32 pixels or more")
        if not 0 < self.rate < math.inf:
            raise UserError(f"evaluation.detection.rate is {self.rate}; it must be a positive number")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"evaluation.detection.weight_decay is {self.weight_decay}; it must be 0 or more")


@dataclass(frozen=True)
class SegmentationConfig:
    """How linear segmentation is trained on frozen tokens.

    epochs: of training
    rates:  learning rates that are trained at once
    size:   side of the square that a whole image is resized to, pixels; 0 is the network's own
    images: at most that many training images are taken, drawn once for a seed: their tokens stay in memory
    pixels: that are drawn of each image at each step
    """

    epochs: int = 20
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    size: int = 0
    images: int = 2000
    pixels: int = 1024

    def __post_init__(self) -> None:
        for name in ("epochs", "images", "pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.segmentation.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.size < 0:
            raise UserError(f"evaluation.segmentation.size is {self.size}; it must be 0 or a number of pixels")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise UserError("evaluation.segmentation.rates must be positive numbers")


@dataclass(frozen=True)
class EvaluationConfig:
    """
    network:        the student is exported and measured, or the momentum network (as DINO does)
    crop:           centre crop's fraction of the resized image (0.875: 224 of 256 px); 1 keeps the whole height
    knn_k:          neighbours of the kNN probe
    knn_temperature: of its votes, e^(cosine / T)
    linear_features: what the linear probe reads: the final CLS (as MoCo-v3), or the CLS of the last four blocks, each
                    through the final norm (as DINO and SER)
    linear_epochs:  of the linear probe
    linear_rates:   learning rates (per 256 images) that are trained at once
    linear_batch:   images of an SGD step, over all processes
    linear_crops:   each epoch passes random crops of the images through the network, as published, instead of reading
                    one feature of each; costs `linear_epochs` times as much
    held_out:       fraction of the training images that chooses rate and epoch
    fewshot_per_class: numbers of images a class
    fewshot_draws:  of these images
    mlp_width:      hidden units of the non-linear probe
    mlp_epochs, mlp_rates: of AdamW
    attentive_heads: of the attentive probe
    attentive_epochs, attentive_rates: of AdamW
    equivariance_images: images that equivariance is measured on
    equivariance, robustness, detection, segmentation: groups of their own
    """

    network: Literal["student", "momentum"] = "student"
    crop: float = 0.875
    knn_k: int = 20
    knn_temperature: float = 0.07
    linear_features: Literal["cls", "last4"] = "cls"
    linear_epochs: int = 100
    linear_rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    linear_batch: int = 256
    linear_crops: bool = False
    held_out: float = 0.1
    fewshot_per_class: tuple[int, ...] = (1, 5, 10)
    fewshot_draws: int = 5
    mlp_width: int = 1024
    mlp_epochs: int = 30
    mlp_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003)
    attentive_heads: int = 8
    attentive_epochs: int = 10
    attentive_rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01)
    equivariance_images: int = 256
    equivariance: EquivarianceConfig = field(default_factory=EquivarianceConfig)
    robustness: RobustnessConfig = field(default_factory=RobustnessConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"evaluation.crop is {self.crop}; it must lie in (0, 1]")
        if not 0 < self.held_out <= 0.5:
            raise UserError(f"evaluation.held_out is {self.held_out}; it must lie in (0, 0.5]")
        for name in (
            "knn_k", "linear_epochs", "linear_batch", "fewshot_draws", "mlp_width", "mlp_epochs", "attentive_heads",
            "attentive_epochs",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 < self.knn_temperature < math.inf:
            raise UserError(f"evaluation.knn_temperature is {self.knn_temperature}; it must be a positive number")
        if self.equivariance_images < 2:
            raise UserError("evaluation.equivariance_images must be 2 or more: other images are the reference")
        for name in ("linear_rates", "mlp_rates", "attentive_rates"):
            rates = getattr(self, name)
            if not rates or not all(0 < rate < math.inf for rate in rates):
                raise UserError(f"evaluation.{name} is {rates}; it must be one or more positive numbers")
        if not self.fewshot_per_class or min(self.fewshot_per_class) < 1:
            raise UserError(
                f"evaluation.fewshot_per_class is {self.fewshot_per_class}; it must be numbers of 1 or more"
            )
