"""Decode an image file to 8-bit RGB, or say in a few words why that is not possible."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from equimid.errors import UnreadableImage

__all__ = ["IMAGE_SUFFIXES", "UnreadableImage", "open_image", "read_size", "reasons"]

# lower case; a folder is searched for these in any case
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm"),
        *("png", "pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)

ImageFile = str | os.PathLike[str] | IO[bytes]

_REFUSED = {
    "F": "32-bit float, range unknown; convert it to 8 or 16 bits",
    "LAB": "Lab colours; convert it to RGB",
}
_TIFF_BITS_PER_SAMPLE = 258


def open_image(file: ImageFile) -> Image.Image:
    """Decode a file to an RGB image, 8 bits a channel.

    EXIF orientation is applied. Alpha is laid over white. 16-bit grey maps 0..65535 to 0..255 (12-bit TIFF: 0..4095).
    Of several frames or pages the first is taken.

    Raises:
        UnreadableImage: with the reason.
    """
    with reasons(file), Image.open(file) as image:
        _refuse(image)
        image.load()
        _turn_upright(image)
        return _to_rgb(image)


def read_size(file: ImageFile) -> tuple[int, int]:
    """Read (width, height) in px from the header: before EXIF rotation, without decoding.

    Raises:
        UnreadableImage: not an image, or of a kind that `open_image` refuses.
    """
    with reasons(file), Image.open(file) as image:
        _refuse(image)
        return image.size


@contextmanager
def reasons(file: ImageFile | None = None) -> Iterator[None]:
    """Raise any exception of PIL as UnreadableImage, but MemoryError as it is."""
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage("0 bytes" if _is_empty(file) else "not an image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = (Image.MAX_IMAGE_PIXELS or 0) * 2 // 10**6
        raise UnreadableImage(f"more than {limit} million pixels, damaged or hostile") from None
    except FileNotFoundError:
        raise UnreadableImage("no such file") from None
    except IsADirectoryError:
        raise UnreadableImage("a folder, not a file") from None
    except PermissionError:
        raise UnreadableImage("no permission to read it") from None
    except Exception as error:
        # on damaged input PIL raises almost anything: OSError, SyntaxError, struct.error, IndexError
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, EOFError) or "truncat" in text.lower():
            raise UnreadableImage("truncated") from error
        raise UnreadableImage(f"damaged ({text})") from error


def _is_empty(file: ImageFile | None) -> bool:
    if file is None:
        return False
    if isinstance(file, str | os.PathLike):
        return os.path.getsize(file) == 0
    return file.seek(0, os.SEEK_END) == 0


def _refuse(image: Image.Image) -> None:
    if image.mode in _REFUSED:
        raise UnreadableImage(_REFUSED[image.mode])


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:
        # a damaged EXIF block says nothing about the pixels, which are decoded already
        return


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey16_to_rgb(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _grey16_to_rgb(image: Image.Image) -> Image.Image:
    # PIL's own convert clips at 255 instead of scaling
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("whole numbers outside 0..65535, range unknown; convert it to 8 or 16 bits")
    bits = getattr(image, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE, (16,))
    top = 4095 if bits == (12,) else 65535
    return Image.fromarray(((values * 255 + top // 2) // top).astype(np.uint8)).convert("RGB")
