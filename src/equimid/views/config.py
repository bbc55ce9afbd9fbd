"""Settings of the views."""

from dataclasses import field
from typing import Annotated, Literal

from equimid.settings import setting, settings

__all__ = ["LocalViews", "Photometric", "ViewsConfig"]

Range = tuple[float, float]
_Positive = Annotated[float, setting("", gt=0)]


@settings()
class Photometric:
    """What one view draws. The defaults are MoCo-v3's first view.

    A kernel wider than an image's reflection allows (2 min(H, W) - 1) is shrunk to that.
    """

    jitter: Annotated[float, setting("probability of the colour jitter", ge=0, le=1)] = 0.8
    brightness: Annotated[float, setting("x: factors are drawn from [max(0, 1 - x), 1 + x]", ge=0)] = 0.4
    contrast: Annotated[float, setting("as brightness", ge=0)] = 0.4
    saturation: Annotated[float, setting("as brightness", ge=0)] = 0.2
    hue: Annotated[float, setting("h: turns are drawn from [-h, h]", unit="full turns", ge=0, le=0.5)] = 0.1
    grey: Annotated[float, setting("probability of grey", ge=0, le=1)] = 0.2
    blur: Annotated[float, setting("probability of the blur", ge=0, le=1)] = 1.0
    blur_sigma: Annotated[Range, setting("range of its standard deviation", unit="pixels")] = (0.1, 2.0)
    blur_kernel: Annotated[int, setting("side of its kernel, odd", unit="pixels", ge=1)] = 23
    solarise: Annotated[float, setting("probability of solarisation", ge=0, le=1)] = 0.0
    solarise_threshold: Annotated[float, setting("its threshold, for values in [0, 1]", ge=0, le=1)] = 128 / 255

    def __post_init__(self) -> None:
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise ValueError(
                f"blur_sigma is {[low, high]}; it must be a range [low, high] above 0, in pixels (blur=0 for no blur)"
            )
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel is {self.blur_kernel}; it must be odd, such as {self.blur_kernel + 1}")


@settings("views.local")
class LocalViews:
    """Small views of every image, for the student only (multi-crop)."""

    count: Annotated[int, setting("how many; 0 = none", ge=0)] = 0
    size: Annotated[int, setting("their side, a multiple of the patch size", unit="pixels", ge=1)] = 96
    scale: Annotated[Range, setting("range of a crop's fraction of the image area")] = (0.05, 0.25)
    photometric: Annotated[Photometric, setting("their colours")] = field(
        default_factory=lambda: Photometric(blur=0.5, grey=0.0)
    )

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)


@settings("views")
class ViewsConfig:
    """The views of every image; photometric defaults are MoCo-v3's."""

    full: Annotated[int, setting("full-size views; a third is drawn as the first and is the student's", ge=2, le=3)] = 2
    local: Annotated[LocalViews, setting("small views beside them")] = field(default_factory=LocalViews)
    crop_scale: Annotated[Range, setting("range of a full crop's fraction of the image area")] = (0.08, 1.0)
    flip: Annotated[float, setting("probability of the horizontal flip", ge=0, le=1)] = 0.5
    interpolation: Annotated[Literal["bilinear", "bicubic"], setting("of crops")] = "bilinear"
    first: Annotated[Photometric, setting("colours of the first view")] = field(default_factory=Photometric)
    second: Annotated[Photometric, setting("colours of the second view")] = field(
        default_factory=lambda: Photometric(blur=0.1, solarise=0.2)
    )
    mean: Annotated[
        tuple[float, float, float], setting("mean of red, green and blue that is subtracted (ImageNet's)")
    ] = (0.485, 0.456, 0.406)
    std: Annotated[
        tuple[_Positive, _Positive, _Positive],
        setting("deviation of red, green and blue that values are divided by (ImageNet's)"),
    ] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        check_scale("crop_scale", self.crop_scale)


def check_scale(name: str, scale: Range) -> None:
    """
    Raises:
        ValueError: not a range within (0, 1].
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"{name} is {[low, high]}; it must be a range [low, high] within (0, 1]")
