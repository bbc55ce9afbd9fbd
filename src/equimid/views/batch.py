"""What leaves the workers: an image's views (`Item`), many of them (`Batch`), and the keys that ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from equimid.views.crops import Cut

__all__ = ["Batch", "EncodedImage", "Item", "Key", "ViewBatch", "collate"]


@dataclass(frozen=True, slots=True)
class Key:
    """Asks for the views of one image.

    Attributes:
        epoch: from 0.
        index: of the image in the source.
        posed: whether it is posed or cropped.
        pair: index of the image whose draws an aligned view shares; -1 = none.
    """

    epoch: int
    index: int
    posed: bool
    pair: int = -1


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A plain JPEG file that the training process decodes: see `equimid.views.device_decode`.

    Attributes:
        key: that asked for it; what is done again if the file is damaged.
        orientation: EXIF's, 1..8.
        cuts: what becomes of it, in the order of an item's pixels.
        bytes: length of the file.
    """

    key: Key
    orientation: int
    cuts: tuple[Cut, ...]
    bytes: int


@dataclass(frozen=True)
class Item:
    """The views of one image. P photometric parameters, in the order of `equimid.views.FIELDS`.

    Attributes:
        index: of the image in the source.
        posed: whether the views are to be posed; else they are crops.
        pixels: (3, S, S) uint8 of each view: the standard ones, then the extra ones of the plan. Of a posed image one
            upright square for each pair of views. Of an encoded image one tensor (bytes,): the file.
        boxes: (len(pixels), 5) top, left, height, width as fractions of the image, and whether flipped.
        photometric: (V, P) of each view.
        unreadable: indices of images that could not be read, in whose place this one is.
        encoded: what is to be done to the file; None = the pixels are there.
    """

    index: int
    posed: bool
    pixels: list[Tensor]
    boxes: Tensor
    photometric: Tensor
    unreadable: tuple[int, ...]
    encoded: EncodedImage | None = None


@dataclass(frozen=True)
class ViewBatch:
    """One view of b images. P photometric parameters, in the order of `equimid.views.FIELDS`.

    Attributes:
        pixels: (b, 3, S, S) uint8, less those of encoded images.
        boxes: (b, 5) top, left, height, width as fractions of the image, and whether flipped.
        photometric: (b, P).
    """

    pixels: Tensor
    boxes: Tensor
    photometric: Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's share of a global batch, as it leaves the workers.

    Attributes:
        crops: the standard views, then the extra ones, each of b1 cropped images; [] where there are none.
        posed: the posed views, each of b2 images; the upright pixels of views 2j and 2j + 1 are one tensor.
        indices: (b1 + b2,) of the images in the source, cropped first.
        unreadable: indices that could not be read and were replaced by images that could.
        encoded: {place in `indices`: image} that is still to be decoded.
        files: (bytes,) uint8: the files of `encoded`, one after the other.
    """

    crops: list[ViewBatch]
    posed: list[ViewBatch]
    indices: Tensor
    unreadable: tuple[int, ...]
    encoded: dict[int, EncodedImage] = field(default_factory=dict)
    files: Tensor | None = None

    def pin_memory(self) -> "Batch":
        """For the loader: pixels in page-locked memory."""
        pinned = [[view.pixels.pin_memory() for view in views] for views in (self.crops, self.posed[::2])]
        return self.with_pixels(*pinned)

    def with_pixels(self, crops: Sequence[Tensor], pairs: Sequence[Tensor]) -> "Batch":
        """The same batch with other pixels: of every crop, and of every pair of posed views."""
        return replace(
            self,
            crops=[replace(view, pixels=x) for view, x in zip(self.crops, crops, strict=True)],
            posed=[replace(view, pixels=pairs[v // 2]) for v, view in enumerate(self.posed)],
        )


def collate(items: Sequence[Item]) -> Batch:
    """One batch of many items."""
    cropped = [item for item in items if not item.posed]
    posed = [item for item in items if item.posed]
    ordered = [*cropped, *posed]
    files = [item.pixels[0] for item in ordered if item.encoded is not None]
    return Batch(
        crops=_views(cropped, 1),
        posed=_views(posed, 2),
        indices=torch.tensor([item.index for item in ordered]),
        unreadable=tuple(index for item in items for index in item.unreadable),
        encoded={place: item.encoded for place, item in enumerate(ordered) if item.encoded is not None},
        # one tensor: each one costs a file descriptor on its way to the training process
        files=torch.cat(files) if files else None,
    )


def _views(items: Sequence[Item], sharing: int) -> list[ViewBatch]:
    """The views of items of one kind, of which `sharing` neighbours have the same pixels."""
    if not items:
        return []
    pixels = [_stack(items, j) for j in range(len(items[0].boxes))]
    boxes = [torch.stack([item.boxes[j] for item in items]) for j in range(len(pixels))]
    return [
        ViewBatch(pixels[v // sharing], boxes[v // sharing], torch.stack([item.photometric[v] for item in items]))
        for v in range(len(items[0].photometric))
    ]


def _stack(items: Sequence[Item], j: int) -> Tensor:
    """Pixels j of the decoded ones among some items, (n, 3, S, S)."""
    ready = [item.pixels[j] for item in items if item.encoded is None]
    if ready:
        return torch.stack([x.permute(1, 2, 0) for x in ready]).permute(0, 3, 1, 2)  # as they lie in memory
    encoded = items[0].encoded
    assert encoded is not None
    size = encoded.cuts[j].size
    return torch.zeros(0, 3, size, size, dtype=torch.uint8)
