"""Images made worse in 19 ways and five severities (Hendrycks and Dietterich 2019, "Benchmarking neural network
robustness to common corruptions and perturbations"), drawn here from an explicit generator.

corrupted = corrupt(image, "fog", severity=3, rng=np.random.default_rng(0))

The kinds and the constants of each severity are those of ImageNet-C at 224 px. What is a length in pixels (a blur's
radius, a flake's size) grows and shrinks with the image's shorter side; where it would vanish on a small image, the
constants of CIFAR-10-C, which the authors chose for 32 px, or one pixel are the least. Levels (a noise's deviation, a
contrast) are the same at every size.

It is not ImageNet-C: those images were drawn once and saved as JPEG. Known differences beside the random numbers: frost
is drawn, not photographed; spatter finds the outline of a drop without Canny's detector; elastic_transform moves and
resamples once where the original resamples twice; values are rounded, not cut down, to whole levels.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from equimid.errors import UserError
from equimid.evaluation.robustness.corruptions import blurs, digital, noises, weather

__all__ = ["KINDS", "RANDOM_KINDS", "SEVERITIES", "SMALLEST_SIDE", "VALIDATION_KINDS", "corrupt"]

Image = npt.NDArray[np.uint8]
Values = npt.NDArray[np.float32]

SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST_SIDE = 8  # pixels
_PUBLISHED_SIDE = 224

# values (H, W, 3) in [0, 1], number of the severity from 0, generator, lengths per published pixel -> values
_Corruption = Callable[[Values, int, np.random.Generator, float], Values]

_TEST: dict[str, _Corruption] = {
    "gaussian_noise": noises.gaussian_noise,
    "shot_noise": noises.shot_noise,
    "impulse_noise": noises.impulse_noise,
    "defocus_blur": blurs.defocus_blur,
    "glass_blur": blurs.glass_blur,
    "motion_blur": blurs.motion_blur,
    "zoom_blur": blurs.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
_VALIDATION: dict[str, _Corruption] = {
    "speckle_noise": noises.speckle_noise,
    "gaussian_blur": blurs.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}
_ALL = _TEST | _VALIDATION
_FIXED = {
    *("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur"),
    "saturate",
}

KINDS = tuple(_TEST)
VALIDATION_KINDS = tuple(_VALIDATION)
RANDOM_KINDS = tuple(kind for kind in _ALL if kind not in _FIXED)


def corrupt(image: Image, kind: str, severity: int, rng: np.random.Generator) -> Image:
    """The image with a corruption, of the same shape; the given one is left as it is.

    Args:
        image: (H, W, 3) uint8, RGB, each side 8 px or more.
        kind: one of KINDS or VALIDATION_KINDS.
        severity: 1 to 5.
        rng: of the random kinds; the others draw nothing from it.

    Raises:
        UserError: another kind, severity or shape.
    """
    if kind not in _ALL:
        raise UserError(f"there is no corruption {kind!r}; there are {', '.join(_ALL)}")
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity} of {kind}; it must be one of 1, 2, 3, 4, 5")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < SMALLEST_SIDE:
        raise UserError(
            f"an image of shape {image.shape} and type {image.dtype} cannot be corrupted; expected (H, W, 3), uint8, "
            f"each side {SMALLEST_SIDE} px or more"
        )
    values = image.astype(np.float32) / np.float32(255)
    corrupted = _ALL[kind](values, severity - 1, rng, min(image.shape[:2]) / _PUBLISHED_SIDE)
    levels: Image = np.rint(corrupted.clip(0, 1) * 255).astype(np.uint8)
    return levels
