"""What a task asks of the data: which views of how many images, as values that workers and device share."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from equimid.errors import UserError
from equimid.views.photometric import Photometric

__all__ = [
    "CentreView",
    "CropView",
    "ExtraView",
    "LocalViews",
    "PosedViews",
    "ViewPlan",
    "ViewsConfig",
    "check_size",
]


@dataclass(frozen=True)
class CropView:
    """A standard view: random resized crop of `size` px, flip, photometric.

    scale: range of the crop's fraction of the area; aspect is log-uniform in [3/4, 4/3]
    """

    size: int
    scale: tuple[float, float]
    flip: float
    photometric: Photometric


@dataclass(frozen=True)
class CentreView:
    """The centre of the image, nothing drawn: a square of `fraction` of the shorter side, resized to `size` px."""

    size: int
    fraction: float


@dataclass(frozen=True)
class ExtraView:
    """A view that an add-on asks for beside the standard ones, of every cropped image.

    turns: shown upright only (1), or at each of the four quarter turns (4)
    """

    view: CropView | CentreView
    turns: Literal[1, 4] = 1


@dataclass(frozen=True)
class PosedViews:
    """Posed views of `count` images of the global batch: square image, photometric, pose; no crop.

    sizes:       side of the upright square image per view, px; views 2j and 2j + 1 are a pair of one size
    grids:       size of the fixed set that the posed grids are drawn from; 0 = any grid in the ranges
    shared_crop: cut one random crop for both views of a pair first, as the SER release does
    """

    count: int
    sizes: tuple[int, ...]
    patch_size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    complement: bool = False
    shared_crop: bool = False
    grids: int = 0


@dataclass(frozen=True)
class ViewPlan:
    """All views of a batch. Image p of the global batch is posed if p < posed.count, otherwise cropped.

    extra:   by name, views of the cropped images beside `crops`
    aligned: images 2j and 2j + 1 of the batch share crop, jitter and grey of each standard view
    """

    crops: tuple[CropView, ...]
    posed: PosedViews | None
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    extra: Mapping[str, ExtraView] = field(default_factory=dict)
    aligned: bool = False

    @property
    def unit(self) -> int:
        """Neighbouring images that must stay on one rank."""
        return 2 if self.aligned else 1

    def positions(self, count: int, rank: int, ranks: int) -> list[int]:
        """Those of the first `count` images of a global batch that belong to a rank: dealt out in turn, pairs whole."""
        return [p for p in range(count) if p // self.unit % ranks == rank]

    @property
    def label(self) -> str:
        """The view setting of a cropped image, such as "2 x 224 + 4 x 96"."""
        sizes = Counter(view.size for view in self.crops)
        for extra in self.extra.values():
            sizes[extra.view.size] += extra.turns
        return " + ".join(f"{count} x {size}" for size, count in sorted(sizes.items(), reverse=True))


@dataclass(frozen=True)
class LocalViews:
    """Small views of every image, for the student only (multi-crop).

    count: 0 = none;  size: px, a multiple of the patch;  scale: range of a crop's fraction of the image area
    """

    count: int = 0
    size: int = 96
    scale: tuple[float, float] = (0.05, 0.25)
    photometric: Photometric = field(default_factory=lambda: Photometric(blur=0.5, grey=0.0))

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UserError(f"views.local.count is {self.count}; it must be 0 or more")
        _check_scale("views.local.scale", self.scale)


@dataclass(frozen=True)
class ViewsConfig:
    """The views of every image; photometric defaults are MoCo-v3's.

    full:          full-size views: 2, or 3 (the third, drawn as the first, is the student's alone)
    local:         small views beside them
    crop_scale:    range of a full crop's fraction of the image area
    flip:          probability of the horizontal flip
    interpolation: of crops
    first, second: photometric draw of the first and the second view
    mean, std:     normalisation (ImageNet's)
    """

    full: int = 2
    local: LocalViews = field(default_factory=LocalViews)
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    first: Photometric = field(default_factory=Photometric)
    second: Photometric = field(default_factory=lambda: Photometric(blur=0.1, solarise=0.2))
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _check_scale("views.crop_scale", self.crop_scale)
        if self.full not in (2, 3):
            raise UserError(f"views.full is {self.full}; it must be 2 or 3 (views.local.count adds small views)")
        if not all(0 < std < float("inf") for std in self.std) or not all(abs(mean) < 1e6 for mean in self.mean):
            raise UserError(
                f"views.mean is {list(self.mean)} and views.std {list(self.std)}; give three finite numbers each, "
                "deviations above 0"
            )
        if not 0 <= self.flip <= 1:
            raise UserError(f"views.flip is {self.flip}; it must lie in 0..1")

    def plan(self, image_size: int, patch_size: int) -> ViewPlan:
        """The standard views, full ones of `image_size` px.

        Raises:
            UserError: a size is not a multiple of the patch.
        """
        check_size("backbone.image_size", image_size, patch_size)
        kinds = (self.first, self.second, self.first)[: self.full]
        crops = [CropView(image_size, self.crop_scale, self.flip, kind) for kind in kinds]
        if self.local.count:
            check_size("views.local.size", self.local.size, patch_size)
            local = CropView(self.local.size, self.local.scale, self.flip, self.local.photometric)
            crops += [local] * self.local.count
        return ViewPlan(tuple(crops), None, self.interpolation, self.mean, self.std)


def check_size(setting: str, size: int, patch_size: int) -> None:
    """
    Raises:
        UserError: the size in px is not a multiple of the patch.
    """
    if size < patch_size or size % patch_size:
        near = max(patch_size, round(size / patch_size) * patch_size)
        raise UserError(f"{setting} is {size}, not a multiple of the {patch_size} px patch; try {near}")


def _check_scale(setting: str, scale: tuple[float, float]) -> None:
    low, high = scale
    if not 0 < low <= high <= 1:
        raise UserError(f"{setting} is {[low, high]}; it must be a range within (0, 1]")
