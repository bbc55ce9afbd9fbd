"""How a run is measured."""

import math
from dataclasses import dataclass, field
from typing import Literal

from equimid.errors import UserError

__all__ = ["DetectionConfig", "EquivarianceConfig", "EvaluationConfig", "RobustnessConfig", "SegmentationConfig"]


@dataclass(frozen=True)
class EquivarianceConfig:
    """How equivariance is measured.

    interpolation: that resamples images and maps where a pose is no permutation
    """

    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"


@dataclass(frozen=True)
class RobustnessConfig:
    """How robustness is measured.

    severities: of the generated corruptions, 1 to 5
    """

    severities: tuple[int, ...] = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class DetectionConfig:
    """How detection is trained on a frozen network.

    steps: of training
    """

    steps: int = 500


@dataclass(frozen=True)
class SegmentationConfig:
    """How linear segmentation is trained on frozen tokens.

    epochs: of training
    """

    epochs: int = 20


@dataclass(frozen=True)
class EvaluationConfig:
    """
    network:        the student is exported and measured, or the momentum network (as DINO does)
    crop:           centre crop's share of the resized image (0.875: 224 of 256 px); 1 keeps the whole height
    knn_k:          neighbours of the kNN probe
    knn_temperature: of its votes, e^(cosine / T)
    linear_features: what the linear probe reads: the final CLS (as MoCo-v3), or the CLS of the last four blocks, each
                    through the final norm (as DINO and SER)
    linear_epochs:  of the linear probe
    linear_rates:   learning rates (per 256 images) that are trained at once
    held_out:       share of the training images that chooses the rate
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
    held_out: float = 0.1
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
        for name in ("knn_k", "linear_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"evaluation.{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 < self.knn_temperature < math.inf:
            raise UserError(f"evaluation.knn_temperature is {self.knn_temperature}; it must be a positive number")
        if self.equivariance_images < 2:
            raise UserError("evaluation.equivariance_images must be 2 or more: other images are the reference")
        if not self.linear_rates or not all(0 < rate < math.inf for rate in self.linear_rates):
            raise UserError("evaluation.linear_rates must be positive numbers")
