"""What a task asks of the data: which views of how many images, as values that workers and device share."""

from dataclasses import dataclass, field
from typing import Literal

from equimid.errors import UserError
from equimid.views.photometric import Photometric

__all__ = ["CropView", "PosedViews", "ViewPlan", "ViewsConfig"]


@dataclass(frozen=True)
class CropView:
    """A standard view: random resized crop of `size` px, flip, photometric.

    scale: range of the crop's share of the area; aspect is log-uniform in [3/4, 4/3]
    """

    size: int
    scale: tuple[float, float]
    flip: float
    photometric: Photometric


@dataclass(frozen=True)
class PosedViews:
    """Two posed views of `count` images of the global batch: square image, photometric, pose; no crop.

    size:        side of the upright square image, px
    shared_crop: cut one random crop for both views first, as the SER release does
    """

    count: int
    size: int
    patch_size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    complement: bool = False
    shared_crop: bool = False


@dataclass(frozen=True)
class ViewPlan:
    """All views of a batch. Image p of the global batch is posed if p < posed.count, otherwise cropped."""

    crops: tuple[CropView, ...]
    posed: PosedViews | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ViewsConfig:
    """The two views of every image; photometric defaults are MoCo-v3's.

    crop_scale:    range of a crop's share of the image area
    flip:          probability of the horizontal flip
    interpolation: of crops
    first, second: photometric draw of the first and the second view
    mean, std:     normalisation (ImageNet's)
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    first: Photometric = field(default_factory=Photometric)
    second: Photometric = field(default_factory=lambda: Photometric(blur=0.1, solarise=0.2))
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"views.crop_scale is {[low, high]}; it must be a range within (0, 1]")
        if not 0 <= self.flip <= 1:
            raise UserError(f"views.flip is {self.flip}; it must lie in 0..1")

    def plan(self, image_size: int, posed: PosedViews | None) -> ViewPlan:
        """Two crops of `image_size` px for every image that is not posed."""
        crops = tuple(CropView(image_size, self.crop_scale, self.flip, p) for p in (self.first, self.second))
        return ViewPlan(crops, posed, self.interpolation, self.mean, self.std)
