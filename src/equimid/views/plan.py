"""Which views a task needs, of how many images: values that the workers and the training process share."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from equimid.errors import UserError
from equimid.views.config import Photometric, ViewsConfig

__all__ = ["CentreView", "CropView", "ExtraView", "PosedViews", "ViewPlan", "check_size", "standard_views"]


@dataclass(frozen=True)
class CropView:
    """A standard view: a random resized crop.

    Attributes:
        size: px.
        scale: range of the crop's fraction of the area; its aspect is log-uniform in [3/4, 4/3].
        flip: probability that it is mirrored.
        photometric: what is done to its colours.
    """

    size: int
    scale: tuple[float, float]
    flip: float
    photometric: Photometric


@dataclass(frozen=True)
class CentreView:
    """The centre of the image, without any draw.

    Attributes:
        size: px.
        fraction: side of the square that is cut, of the image's shorter side.
    """

    size: int
    fraction: float


@dataclass(frozen=True)
class ExtraView:
    """A view of every cropped image that an add-on needs beside the standard ones.

    Attributes:
        view: what is cut.
        turns: 1 = upright only, 4 = at each of the four quarter turns.
    """

    view: CropView | CentreView
    turns: Literal[1, 4] = 1


@dataclass(frozen=True)
class PosedViews:
    """Posed views: the whole image as a square, photometric changes, a pose; no crop.

    Attributes:
        count: images of the global batch that are posed.
        sizes: px, side of the upright square of each view; views 2j and 2j + 1 are a pair of one size.
        patch_size: px.
        area: range of a posed grid's area, of the upright grid's.
        aspect: range of its aspect.
        complement: draw pairs of which every relative element is a reflection, as the SER release does.
        shared_crop: cut one random crop for both views of a pair first, as the SER release does.
        grids: size of the fixed set that the posed grids are drawn from; 0 = any grid in the ranges.
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

    Attributes:
        crops: the standard views.
        posed: None = no image is posed.
        interpolation: of crops.
        mean: of red, green and blue, in [0, 1]; it is subtracted.
        std: of red, green and blue; values are divided by it.
        extra: by name, views of the cropped images beside `crops`.
        aligned: whether images 2j and 2j + 1 of the batch share crop, jitter and grey of each standard view.
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
        """Which of the first `count` images of a global batch belong to a rank: every W-th one, or every W-th pair."""
        return [p for p in range(count) if p // self.unit % ranks == rank]

    @property
    def label(self) -> str:
        """The view setting of a cropped image, such as "2 x 224 + 4 x 96"."""
        sizes = Counter(view.size for view in self.crops)
        for extra in self.extra.values():
            sizes[extra.view.size] += extra.turns
        return " + ".join(f"{count} x {size}" for size, count in sorted(sizes.items(), reverse=True))


def standard_views(config: ViewsConfig, image_size: int, patch_size: int) -> ViewPlan:
    """Make the plan of the standard views alone, full ones of `image_size` px.

    Raises:
        UserError: a size is not a multiple of the patch size.
    """
    check_size("backbone.image_size", image_size, patch_size)
    kinds = (config.first, config.second, config.first)[: config.full]
    crops = [CropView(image_size, config.crop_scale, config.flip, kind) for kind in kinds]
    if config.local.count:
        check_size("views.local.size", config.local.size, patch_size)
        local = CropView(config.local.size, config.local.scale, config.flip, config.local.photometric)
        crops += [local] * config.local.count
    return ViewPlan(tuple(crops), None, config.interpolation, config.mean, config.std)


def check_size(setting: str, size: int, patch_size: int) -> None:
    """Check a size in px.

    Raises:
        UserError: it is not a multiple of the patch size.
    """
    if size < patch_size or size % patch_size:
        near = max(patch_size, round(size / patch_size) * patch_size)
        raise UserError(f"{setting} is {size}, not a multiple of the {patch_size} px patch; try {near}")
