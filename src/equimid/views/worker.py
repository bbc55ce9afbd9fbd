"""The worker's side of the views: decode once, crop, flip, draw photometric parameters.

Everything drawn is a function of (seed, epoch, index): the number of workers and a resume change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.errors import UnreadableImage, UserError
from equimid.randomness import counted_generator
from equimid.views.photometric import draw
from equimid.views.plan import CropView, ViewPlan

__all__ = ["Batch", "ImageSource", "Key", "ViewDataset", "collate"]

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageSource(Protocol):
    """What a dataset needs of a source of images."""

    def __len__(self) -> int: ...
    def load(self, index: int) -> Image.Image: ...
    def describe(self, index: int) -> str: ...


@dataclass(frozen=True, slots=True)
class Key:
    """Which image, in which epoch, posed or cropped."""

    epoch: int
    index: int
    posed: bool


@dataclass(frozen=True)
class Item:
    """One image's views: uint8 pixels (3, S, S), crop boxes (V, 5) and photometric rows (V, P)."""

    index: int
    posed: bool
    pixels: list[Tensor]
    boxes: Tensor
    rows: Tensor
    unreadable: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, as it leaves the workers.

    crops:       per standard view, (b1, 3, S, S) uint8
    crop_boxes:  per standard view, (b1, 5): top, left, height, width as shares of the image, and whether flipped
    crop_rows:   per standard view, (b1, P) photometric parameters
    squares:     (b2, 3, S, S) uint8, upright images to be posed
    square_rows: per posed view, (b2, P)
    indices:     (b1 + b2,) of the images in the source, cropped first
    unreadable:  indices that could not be read and were replaced by the next readable image
    """

    crops: list[Tensor]
    crop_boxes: list[Tensor]
    crop_rows: list[Tensor]
    squares: Tensor | None
    square_rows: list[Tensor]
    indices: Tensor
    unreadable: tuple[int, ...]

    def pin_memory(self) -> "Batch":
        """For the loader: pixels in page-locked memory."""
        squares = None if self.squares is None else self.squares.pin_memory()
        crops = [x.pin_memory() for x in self.crops]
        return Batch(crops, self.crop_boxes, self.crop_rows, squares, self.square_rows, self.indices, self.unreadable)


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
        pixels, boxes, rows = [], [], []
        for view in self.plan.crops:
            box = sample_crop(image.size, view.scale, rng)
            flipped = rng.random() < view.flip
            pixels.append(_cut(image, box, view.size, self.plan.interpolation, flipped))
            boxes.append(_shares(box, image.size, flipped))
            rows.append(draw(view.photometric, rng))
        return Item(index, False, pixels, torch.tensor(boxes), torch.from_numpy(np.stack(rows)), unreadable)

    def _posed(self, image: Image.Image, index: int, rng: np.random.Generator, unreadable: tuple[int, ...]) -> Item:
        posed = self.plan.posed
        assert posed is not None
        view: CropView = self.plan.crops[0]
        box = (
            sample_crop(image.size, view.scale, rng)
            if posed.shared_crop
            else (0.0, 0.0, float(image.width), float(image.height))
        )
        flipped = posed.shared_crop and rng.random() < view.flip
        rows = [draw(crop.photometric, rng) for crop in self.plan.crops[:2]]
        pixels = [_cut(image, box, posed.size, self.plan.interpolation, flipped)]
        boxes = torch.tensor([_shares(box, image.size, flipped)])
        return Item(index, True, pixels, boxes, torch.from_numpy(np.stack(rows)), unreadable)

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
    return Batch(
        crops=[torch.stack([item.pixels[v] for item in cropped]) for v in views],
        crop_boxes=[torch.stack([item.boxes[v] for item in cropped]) for v in views],
        crop_rows=[torch.stack([item.rows[v] for item in cropped]) for v in views],
        squares=torch.stack([item.pixels[0] for item in posed]) if posed else None,
        square_rows=[torch.stack([item.rows[v] for item in posed]) for v in range(2)] if posed else [],
        indices=torch.tensor([item.index for item in [*cropped, *posed]]),
        unreadable=tuple(index for item in items for index in item.unreadable),
    )


def sample_crop(
    size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
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


def _cut(
    image: Image.Image, box: tuple[float, float, float, float], size: int, interpolation: str, flipped: bool
) -> Tensor:
    # not resize(box=...): its filter would look past the edges of the cut
    cut = image.crop(box).resize((size, size), _FILTERS[interpolation])
    if flipped:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1).contiguous()


def _shares(box: tuple[float, float, float, float], size: tuple[int, int], flipped: bool) -> list[float]:
    (left, top, right, bottom), (width, height) = box, size
    return [top / height, left / width, (bottom - top) / height, (right - left) / width, float(flipped)]
