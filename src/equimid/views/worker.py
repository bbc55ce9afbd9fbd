"""The worker's side of the views: crop, flip, draw photometric parameters, and then decode once for all of them.

Everything drawn is a function of (seed, epoch, index): the number of workers and a resume change nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from equimid.errors import UnreadableImage, UserError
from equimid.randomness import counted_generator
from equimid.views.cutting import Box, Cut, choose_scale, cut_out
from equimid.views.photometric import draw, share_colours, untouched
from equimid.views.pictures import ImageSource, JpegPicture, Picture, open_picture
from equimid.views.plan import CentreView, CropView, ViewPlan

__all__ = ["Batch", "EncodedImage", "ImageSource", "Item", "Key", "ViewDataset", "collate"]

_SQUASHED = 2**16  # side of the square that aligned boxes are drawn on
_TRIES = 100  # an image and the replacements of one that cannot be read
_TOGETHER = 16  # JPEG files whose views are drawn before the first of them is decoded


@dataclass(frozen=True, slots=True)
class Key:
    """Which image, in which epoch, posed or cropped; `pair` is the image whose draws an aligned view shares."""

    epoch: int
    index: int
    posed: bool
    pair: int = -1


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A plain JPEG file that the training process decodes: see `equimid.views.decoding`.

    key:         whose item it is; what is done again if the file is damaged
    orientation: EXIF's, 1..8
    cuts:        what becomes of it, in the order of an item's pixels
    bytes:       length of the file
    """

    key: Key
    orientation: int
    cuts: tuple[Cut, ...]
    bytes: int


@dataclass(frozen=True)
class Item:
    """One image's views: uint8 pixels (3, S, S), crop boxes (V, 5) and photometric rows (V, P).

    A cropped image has its standard views, then the extra ones of the plan; a posed image one upright square per pair
    of posed views, and rows for every posed view. With `encoded` the pixels are one tensor (bytes,): the file.
    """

    index: int
    posed: bool
    pixels: list[Tensor]
    boxes: Tensor
    rows: Tensor
    unreadable: tuple[int, ...]
    encoded: EncodedImage | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, as it leaves the workers.

    crops:       per standard view and then per extra view, (b1, 3, S, S) uint8, less the encoded ones
    crop_boxes:  the same views, (b1, 5): top, left, height, width as shares of the image, and whether flipped
    crop_rows:   the same views, (b1, P) photometric parameters
    squares:     per pair of posed views, (b2, 3, S, S) uint8, upright images to be posed, less the encoded ones
    square_rows: per posed view, (b2, P)
    indices:     (b1 + b2,) of the images in the source, cropped first
    unreadable:  indices that could not be read and were replaced by images that could
    encoded:     {place in `indices`: image} that is still to be decoded
    files:       (bytes,) uint8: the files of `encoded`, one after the other
    """

    crops: list[Tensor]
    crop_boxes: list[Tensor]
    crop_rows: list[Tensor]
    squares: list[Tensor]
    square_rows: list[Tensor]
    indices: Tensor
    unreadable: tuple[int, ...]
    encoded: dict[int, EncodedImage] = field(default_factory=dict)
    files: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """For the loader: pixels in page-locked memory."""
        crops, squares = ([x.pin_memory() for x in pixels] for pixels in (self.crops, self.squares))
        return replace(self, crops=crops, squares=squares)


class ViewDataset(Dataset[Item]):
    """Views of images by Key.

    decode: "workers" gives pixels; "device" gives plain JPEG files as they are, with what is to be cut from them, for
        `decode_encoded`
    """

    def __init__(
        self, source: ImageSource, plan: ViewPlan, seed: int, decode: Literal["workers", "device"] = "workers"
    ) -> None:
        self.source, self.plan, self.seed, self.decode = source, plan, seed, decode

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Key) -> Item:
        return self.item(key, encoded=self.decode == "device")

    def __getitems__(self, keys: Sequence[Key]) -> list[Item]:
        """The items of a batch, for the loader. A twelfth faster than one by one: between two decoded images, the
        processor's caches no longer hold what Python does."""
        groups = (keys[first : first + _TOGETHER] for first in range(0, len(keys), _TOGETHER))
        return [item for group in groups for item in self._together(group)]

    def _together(self, keys: Sequence[Key]) -> list[Item]:
        encoded = self.decode == "device"

        def begin(key: Key) -> "_Opened | Item":
            image = self._open(key, key.index)
            # any other file is decoded already: the pixels of several would be held
            return image if isinstance(image.picture, JpegPicture) else self._cut(image, (), encoded)

        try:
            begun = [begin(key) for key in keys]
            return [image if isinstance(image, Item) else self._cut(image, (), encoded) for image in begun]
        except UnreadableImage:
            return [self.item(key, encoded=encoded) for key in keys]

    def item(self, key: Key, *, encoded: bool) -> Item:
        """The views of an image, or of another one where it cannot be read: files can go bad after they were checked.

        Args:
            encoded: leave plain JPEG files undecoded.

        Raises:
            UserError: many images could not be read.
        """
        unreadable: list[int] = []
        for attempt in range(_TRIES):
            index = self._candidate(key, attempt)
            if index in unreadable:
                continue
            try:
                return self._cut(self._open(key, index), tuple(unreadable), encoded)
            except UnreadableImage:
                unreadable.append(index)
        raise UserError(
            f"image number {key.index} could not be read, nor could {_TRIES - 1} images drawn in its place; "
            "is the disk still there?"
        )

    def _candidate(self, key: Key, attempt: int) -> int:
        """Replacements are drawn, since neighbours go bad together: a folder, a shard."""
        if attempt == 0:
            return key.index
        rng = counted_generator(self.seed, "replacement", key.epoch, key.index, attempt)
        return int(rng.integers(len(self.source)))

    def _open(self, key: Key, index: int) -> "_Opened":
        picture = open_picture(self.source, index)
        # counted by the key, not by the image that may replace an unreadable one
        rng = counted_generator(self.seed, "view", key.epoch, key.index)
        posed = key.posed and self.plan.posed is not None
        cuts, rows = self._draw_posed(picture.size, rng) if posed else self._draw_crops(picture.size, rng, key)
        boxes = torch.from_numpy(np.array([cut.shares(picture.size) for cut in cuts], dtype=np.float32))
        return _Opened(key, index, posed, picture, cuts, boxes, torch.from_numpy(np.array(rows)))

    def _cut(self, image: "_Opened", unreadable: tuple[int, ...], encoded: bool) -> Item:
        picture, cuts = image.picture, image.cuts
        waiting = None
        if encoded and isinstance(picture, JpegPicture):
            waiting = EncodedImage(image.key, picture.orientation, tuple(cuts), len(picture.content))
            pixels = [picture.file()]
        else:
            whole, scale = picture.pixels(choose_scale(cuts, picture.scales))
            pixels = [cut_out(whole, cut, self.plan.interpolation, scale) for cut in cuts]
        return Item(image.index, image.posed, pixels, image.boxes, image.rows, unreadable, waiting)

    def _draw_crops(
        self, size: tuple[int, int], rng: np.random.Generator, key: Key
    ) -> tuple[list[Cut], list[npt.NDArray[np.float32]]]:
        """What to cut for the standard and then the extra views, and their photometric rows."""
        if self.plan.aligned and key.pair < 0:
            raise ValueError(f"the views are aligned in pairs, but the key of image {key.index} names no pair")
        shared = counted_generator(self.seed, "pair", key.epoch, key.pair) if self.plan.aligned else None
        drawn = [_draw_view(view, size, rng, shared) for view in self.plan.crops]
        # last, so that the standard views are the same with and without an add-on
        drawn += [_draw_view(extra.view, size, rng, None) for extra in self.plan.extra.values()]
        return [cut for cut, _ in drawn], [row for _, row in drawn]

    def _draw_posed(
        self, size: tuple[int, int], rng: np.random.Generator
    ) -> tuple[list[Cut], list[npt.NDArray[np.float32]]]:
        """What to cut for every pair of posed views, and the photometric row of each."""
        posed = self.plan.posed
        assert posed is not None
        cuts, rows = [], []
        for first in range(0, len(posed.sizes), 2):
            view = self.plan.crops[first]
            box = sample_crop(size, view.scale, rng) if posed.shared_crop else (0.0, 0.0, *size)
            flipped = posed.shared_crop and rng.random() < view.flip
            cuts.append(Cut(box, posed.sizes[first], flipped))
            rows += [draw(crop.photometric, rng) for crop in self.plan.crops[first : first + 2]]
        return cuts, rows


@dataclass(frozen=True, slots=True)
class _Opened:
    """An image with what is drawn for it; a JPEG file is not decoded yet. boxes, rows: see `Item`."""

    key: Key
    index: int
    posed: bool
    picture: Picture
    cuts: list[Cut]
    boxes: Tensor
    rows: Tensor


def _draw_view(
    view: CropView | CentreView, size: tuple[int, int], rng: np.random.Generator, shared: np.random.Generator | None
) -> tuple[Cut, npt.NDArray[np.float32]]:
    """What to cut from an image of (width, height) px, and the photometric row."""
    if isinstance(view, CentreView):
        return Cut(_centre(size, view.share), view.size, False), untouched()
    if shared is None:
        box = sample_crop(size, view.scale, rng)
        flipped = rng.random() < view.flip
        row = draw(view.photometric, rng)
    else:
        # a box of the squashed image, as images of a pair may differ in shape
        box = _stretched(sample_crop((_SQUASHED, _SQUASHED), view.scale, shared), size)
        flipped = rng.random() < view.flip
        row = share_colours(draw(view.photometric, shared), draw(view.photometric, rng))
    return Cut(box, view.size, flipped), row


def collate(items: Sequence[Item]) -> Batch:
    """One batch of many items."""
    cropped = [item for item in items if not item.posed]
    posed = [item for item in items if item.posed]
    ordered = [*cropped, *posed]
    views = range(len(cropped[0].boxes)) if cropped else range(0)
    pairs = range(len(posed[0].boxes)) if posed else range(0)
    posed_views = range(len(posed[0].rows)) if posed else range(0)
    waiting = [item.pixels[0] for item in ordered if item.encoded is not None]
    return Batch(
        crops=[_stack(cropped, v) for v in views],
        crop_boxes=[torch.stack([item.boxes[v] for item in cropped]) for v in views],
        crop_rows=[torch.stack([item.rows[v] for item in cropped]) for v in views],
        squares=[_stack(posed, j) for j in pairs],
        square_rows=[torch.stack([item.rows[v] for item in posed]) for v in posed_views],
        indices=torch.tensor([item.index for item in ordered]),
        unreadable=tuple(index for item in items for index in item.unreadable),
        encoded={place: item.encoded for place, item in enumerate(ordered) if item.encoded is not None},
        # one tensor: each one costs a file descriptor on its way to the training process
        files=torch.cat(waiting) if waiting else None,
    )


def _stack(items: Sequence[Item], v: int) -> Tensor:
    """View v of the decoded ones among some items, (n, 3, S, S)."""
    ready = [item.pixels[v] for item in items if item.encoded is None]
    if ready:
        return torch.stack([x.permute(1, 2, 0) for x in ready]).permute(0, 3, 1, 2)  # as they lie in memory
    encoded = items[0].encoded
    assert encoded is not None
    size = encoded.cuts[v].size
    return torch.zeros(0, 3, size, size, dtype=torch.uint8)


def sample_crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Box (left, top, right, bottom) in pixels of a random resized crop; torchvision's rule, ten tries, then centre.

    Source: torchvision `RandomResizedCrop.get_params`, aspect width / height log-uniform in [3/4, 4/3].
    """
    width, height = size
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
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
