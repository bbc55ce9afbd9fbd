"""Open an image in two steps: first its size, then its pixels at a scale that is large enough.

libjpeg-turbo decodes plain JPEG files (RGB or grey) into a tensor, at full size or at a half, a quarter or an eighth of
it. The source loads every other file, and every file that libjpeg-turbo refuses. So the same files are accepted as by
the source alone, and at full size they have the same pixels, bit for bit.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

__all__ = ["ImageSource", "JpegPicture", "Picture", "decode_jpegs", "open_picture", "plain_header", "turn_upright"]

_ORIENTATION = 0x0112
_APP1, _SOS = 0xE1, 0xDA  # markers of EXIF or XMP, and of the coded pixels
# EXIF orientation: what turns (3, H, W) upright; 1 is upright
_UPRIGHT: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.rot90(-1, (1, 2)),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.rot90(1, (1, 2)),
}


class ImageSource(Protocol):
    """What a data set needs of a source of images. With `read(index) -> bytes | None` its JPEG files decode faster."""

    def __len__(self) -> int: ...
    def load(self, index: int, /) -> Image.Image: ...
    def describe(self, index: int, /) -> str: ...


@dataclass(frozen=True)
class Picture:
    """An image that is decoded already.

    Attributes:
        size: (width, height) in px, upright.
        load: gives the pixels.
    """

    size: tuple[int, int]
    load: Callable[[], Image.Image]

    @property
    def scales(self) -> tuple[int, ...]:
        """Numbers by which decoding can divide its sides, largest first."""
        return ()

    def pixels(self, scale: int = 1) -> tuple[Tensor, int]:
        """Decode to (3, ceil(height / s), ceil(width / s)) uint8, upright; s is the scale, or 1 where that failed.

        Returns:
            The pixels and s.

        Raises:
            UnreadableImage: with the reason.
        """
        return _tensor(self.load()), 1


@dataclass(frozen=True)
class JpegPicture(Picture):
    """A plain JPEG file of which the header was read.

    Attributes:
        content: the whole file.
        orientation: as its EXIF block says, 1..8.
    """

    content: bytes
    orientation: int

    @property
    def scales(self) -> tuple[int, ...]:
        return (8, 4, 2)

    def pixels(self, scale: int = 1) -> tuple[Tensor, int]:
        decoded = self._decoded(scale)
        # the source says why it cannot be decoded
        return super().pixels() if decoded is None else (turn_upright(decoded, self.orientation), scale)

    def file(self) -> Tensor:
        """(bytes,) uint8."""
        return torch.from_numpy(np.frombuffer(self.content, dtype=np.uint8).copy())

    def _decoded(self, scale: int) -> Tensor | None:
        """(3, ceil(h / s), ceil(w / s)) as in the file, channels together in memory; None where libjpeg-turbo has any
        warning."""
        width, height = self.size if self.orientation < 5 else self.size[::-1]
        shape = -(-height // scale), -(-width // scale)
        try:
            pixels = simplejpeg.decode_jpeg(
                self.content, "RGB", min_height=shape[0], min_width=shape[1], min_factor=scale, strict=True
            )
        except ValueError:
            return None
        return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape[:2] == shape else None


def open_picture(source: ImageSource, index: int) -> Picture:
    """Open image `index` of a source: of a plain JPEG file only the header is read, anything else is decoded.

    Raises:
        UnreadableImage: with the reason.
    """
    read: Callable[[int], bytes | None] | None = getattr(source, "read", None)
    content = read(index) if read is not None else None
    header = None if content is None else plain_header(content)
    if content is None or header is None:
        image = source.load(index)
        return Picture(image.size, lambda: image)
    size, orientation = header
    return JpegPicture(size, lambda: source.load(index), content, orientation)


def decode_jpegs(files: list[Tensor], device: torch.device | None = None) -> list[Tensor | None]:
    """Decode plain JPEG files, each (bytes,) uint8 on the CPU, to (3, H, W) uint8 on a device, not yet turned upright.

    Returns:
        None in the place of a file that torchvision's decoder refuses.
    """
    # here, since it is deprecated there: only runtime.decode=device needs it
    from torchvision.io import ImageReadMode, decode_jpeg

    where = device or torch.device("cpu")
    try:
        return list(decode_jpeg(files, ImageReadMode.RGB, where))
    except RuntimeError:
        # one refused file costs the whole list
        return [None] if len(files) == 1 else [decode_jpegs([file], where)[0] for file in files]


def turn_upright(pixels: Tensor, orientation: int) -> Tensor:
    """Turn pixels (3, H, W) as EXIF's orientation 1..8 says."""
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else turn(pixels)


def plain_header(content: bytes) -> tuple[tuple[int, int], int] | None:
    """Upright size and orientation of a JPEG file that is RGB or grey; None of any other."""
    if not _may_be_turned(content):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        except ValueError:
            return None
        if colours in ("YCbCr", "RGB", "Gray") and width * height <= (Image.MAX_IMAGE_PIXELS or math.inf):
            return (width, height), 1
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "JPEG" or image.mode not in ("RGB", "L"):
                return None
            orientation = _orientation(image)
            return (image.size[::-1] if orientation >= 5 else image.size), orientation
    except MemoryError:
        raise
    except Exception:  # on damaged input PIL raises almost anything; `load` says what
        return None


def _may_be_turned(content: bytes) -> bool:
    """Whether a JPEG file has a segment that may hold an orientation, or is not made of segments at all."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] in (_APP1, _SOS):
            return content[at + 1] == _APP1
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return True


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    except MemoryError:
        raise
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
