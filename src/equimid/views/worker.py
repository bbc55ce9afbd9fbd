"""The worker's side of the views: decode once, crop, flip, draw photometric parameters.

Everything drawn is a function of (seed, epoch, index): the number of workers and a resume change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.errors import UnreadableImage, UserError
from equimid.randomness import counted_generator
from equimid.views.photometric import draw, share_colours, untouched
from equimid.views.plan import CentreView, CropView, ViewPlan

__all__ = ["Batch", "ImageSource", "Key", "ViewDataset", "collate"]

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_SQUASHED = 2**16  # side of the square that aligned boxes are drawn on
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageSource(Protocol):
    """What a dataset needs of a source of images."""

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image: ...
    def describe(self, index: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Key:
    """Which image, in which epoch, posed or cropped; `pair` is the image whose draws an aligned view shares."""

    epoch: int
    index: int
    posed: bool
    pair: int = -1


@dataclass(frozen=True)
class Item:
    """One image's views: uint8 pixels (3, S, S), crop boxes (V, 5) and photometric rows (V, P).

    A cropped image has its standard views, then the extra ones of the plan; a posed image one upright square per pair
    of posed views, and rows for every posed view.
    """

    index: int
    posed: bool
    pixels: list[Tensor]
    boxes: Tensor
    rows: Tensor
    unreadable: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, as it leaves the workers.

    crops:       per standard view and then per extra view, (b1, 3, S, S) uint8
    crop_boxes:  the same views, (b1, 5): top, left, height, width as shares of the image, and whether flipped
    crop_rows:   the same views, (b1, P) photometric parameters
    squares:     per pair of posed views, (b2, 3, S, S) uint8, upright images to be posed
    square_rows: per posed view, (b2, P)
    indices:     (b1 + b2,) of the images in the source, cropped first
    unreadable:  indices that could not be read and were replaced by the next readable image
    """

    crops: list[Tensor]
    crop_boxes: list[Tensor]
    crop_rows: list[Tensor]
    squares: list[Tensor]
    square_rows: list[Tensor]
    indices: Tensor
    unreadable: tuple[int, ...]

    def pin_memory(self) -> "Batch":
        """For the loader: pixels in page-locked memory."""
        crops, squares = ([x.pin_memory() for x in pixels] for pixels in (self.crops, self.squares))
        return replace(self, crops=crops, squares=squares)


class ViewDataset(Dataset[Item]):
    """Views of images by Key."""

    def __init__(self, source: ImageSource, plan: ViewPlan, seed: int) -> None:
        self.source, self.plan, self.seed = source, plan, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item:
        image, index, unreadable = self._load(key.index)
        # counted by the key, not by the image that may replace an unreadable one
        rng = counted_generator(self.seed, "view", key.epoch, key.index)
        if key.posed and self.plan.posed is not None:
            return self._posed(image, index, rng, unreadable)
        if self.plan.aligned and key.pair < 0:
            raise ValueError(f"the views are aligned in pairs, but the key of image {key.index} names no pair")
        shared = counted_generator(self.seed, "pair", key.epoch, key.pair) if self.plan.aligned else None
        drawn = [self._crop(view, image, rng, shared) for view in self.plan.crops]
        # last, so that the standard views are the same with and without an add-on
        drawn += [self._crop(extra.view, image, rng, None) for extra in self.plan.extra.values()]
        pixels, boxes, rows = zip(*drawn, strict=True)
        return Item(index, False, list(pixels), torch.tensor(boxes), torch.from_numpy(np.stack(rows)), unreadable)

    def _crop(
        self, view: CropView | CentreView, image: Image.Image, rng: np.random.Generator,
        shared: np.random.Generator | None,
    ) -> tuple[Tensor, list[float], npt.NDArray[np.float32]]:  # fmt: skip
        """Pixels, box and photometric row of a view."""
        if isinstance(view, CentreView):
            box, flipped, row = _centre(image.size, view.share), False, untouched()
        elif shared is None:
            box = sample_crop(image.size, view.scale, rng)
            flipped = rng.random() < view.flip
            row = draw(view.photometric, rng)
        else:
            # a box of the squashed image, as images of a pair may differ in shape
            box = _stretched(sample_crop((_SQUASHED, _SQUASHED), view.scale, shared), image.size)
            flipped = rng.random() < view.flip
            row = share_colours(draw(view.photometric, shared), draw(view.photometric, rng))
        pixels = _cut(image, box, view.size, self.plan.interpolation, flipped)
        return pixels, _shares(box, image.size, flipped), row

    def _posed(self, image: Image.Image, index: int, rng: np.random.Generator, unreadable: tuple[int, ...]) -> Item:
        posed = self.plan.posed
        assert posed is not None
        pixels, boxes, rows = [], [], []
        for first in range(0, len(posed.sizes), 2):
            view = self.plan.crops[first]
            box = sample_crop(image.size, view.scale, rng) if posed.shared_crop else (0.0, 0.0, *image.size)
            flipped = posed.shared_crop and rng.random() < view.flip
            pixels.append(_cut(image, box, posed.sizes[first], self.plan.interpolation, flipped))
            boxes.append(_shares(box, image.size, flipped))
            rows += [draw(crop.photometric, rng) for crop in self.plan.crops[first : first + 2]]
        return Item(index, True, pixels, torch.tensor(boxes), torch.from_numpy(np.stack(rows)), unreadable)

    def _load(self, index: int) -> tuple[Image.Image, int, tuple[int, ...]]:
        """The image, or the next one that can be read: files can go bad after they were checked."""
        unreadable: list[int] = []
        for offset in range(min(len(self.source), 100)):
            candidate = (index + offset) % len(self.source)
            try:
                return self.source.load(candidate), candidate, tuple(unreadable)
            except UnreadableImage:
                unreadable.append(candidate)
        raise UserError(
            f"{len(unreadable)} images in a row could not be read, from number {index} on; is the disk still there?"
        )


def collate(items: Sequence[Item]) -> Batch:
    """One batch of many items."""
    cropped = [item for item in items if not item.posed]
    posed = [item for item in items if item.posed]
    views = range(len(cropped[0].pixels)) if cropped else range(0)
    pairs = range(len(posed[0].pixels)) if posed else range(0)
    posed_views = range(len(posed[0].rows)) if posed else range(0)
    return Batch(
        crops=[torch.stack([item.pixels[v] for item in cropped]) for v in views],
        crop_boxes=[torch.stack([item.boxes[v] for item in cropped]) for v in views],
        crop_rows=[torch.stack([item.rows[v] for item in cropped]) for v in views],
        squares=[torch.stack([item.pixels[j] for item in posed]) for j in pairs],
        square_rows=[torch.stack([item.rows[v] for item in posed]) for v in posed_views],
        indices=torch.tensor([item.index for item in [*cropped, *posed]]),
        unreadable=tuple(index for item in items for index in item.unreadable),
    )


def sample_crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Box (left, top, right, bottom) in pixels of a random resized crop; torchvision's rule, ten tries, then centre.

    Source: torchvision `RandomResizedCrop.get_params`, aspect width / height log-uniform in [3/4, 4/3].
    """
    width, height = size
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _centre(size: tuple[int, int], share: float) -> Box:
    width, height = size
    side = max(1, round(min(size) * share))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _stretched(box: Box, size: tuple[int, int]) -> Box:
    """A box of the squashed image on the image itself, at least a pixel wide and high."""
    width, height = size
    left, top = int(box[0] / _SQUASHED * width), int(box[1] / _SQUASHED * height)
    right, bottom = round(box[2] / _SQUASHED * width), round(box[3] / _SQUASHED * height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _cut(image: Image.Image, box: Box, size: int, interpolation: str, flipped: bool) -> Tensor:
    # not resize(box=...): its filter would look past the edges of the cut
    cut = image.crop(box).resize((size, size), _FILTERS[interpolation])
    if flipped:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def _shares(box: Box, size: tuple[int, int], flipped: bool) -> list[float]:
    (left, top, right, bottom), (width, height) = box, size
    return [top / height, left / width, (bottom - top) / height, (right - left) / width, float(flipped)]
