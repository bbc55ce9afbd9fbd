"""What leaves the workers: an image's views (`Item`), many of them (`Batch`), and the keys that ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from equimid.views.crops import Cut

__all__ = ["Batch", "EncodedImage", "Item", "Key", "collate"]


@dataclass(frozen=True, slots=True)
class Key:
    """Which image, in which epoch, posed or cropped; `pair` is the image whose draws an aligned view shares."""

    epoch: int
    index: int
    posed: bool
    pair: int = -1


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A plain JPEG file that the training process decodes: see `equimid.views.device_decode`.

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
    crop_boxes:  the same views, (b1, 5): top, left, height, width as fractions of the image, and whether flipped
    crop_rows:   the same views, (b1, P) photometric parameters
    upright:     per pair of posed views, (b2, 3, S, S) uint8, upright images to be posed, less the encoded ones
    upright_rows: per posed view, (b2, P)
    indices:     (b1 + b2,) of the images in the source, cropped first
    unreadable:  indices that could not be read and were replaced by images that could
    encoded:     {place in `indices`: image} that is still to be decoded
    files:       (bytes,) uint8: the files of `encoded`, one after the other
    """

    crops: list[Tensor]
    crop_boxes: list[Tensor]
    crop_rows: list[Tensor]
    upright: list[Tensor]
    upright_rows: list[Tensor]
    indices: Tensor
    unreadable: tuple[int, ...]
    encoded: dict[int, EncodedImage] = field(default_factory=dict)
    files: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """For the loader: pixels in page-locked memory."""
        crops, upright = ([x.pin_memory() for x in pixels] for pixels in (self.crops, self.upright))
        return replace(self, crops=crops, upright=upright)


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
        upright=[_stack(posed, j) for j in pairs],
        upright_rows=[torch.stack([item.rows[v] for item in posed]) for v in posed_views],
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
