"""Image files and what is said of them, for tests of the data room."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from equimid.data import (
    Source,
    open_image,
    open_source,
)
from equimid.errors import UnreadableImage, UserError

ORIENTATION = 0x0112


def draw(path: Path, colour: tuple[int, int, int] = (200, 100, 50), size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels(image: Image.Image) -> Any:
    assert image.mode == "RGB"
    return np.asarray(image)


def reason_of(file: Path | io.BytesIO) -> str:
    with pytest.raises(UnreadableImage) as caught:
        open_image(file)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def relative(source: Source, root: Path) -> list[str]:
    return [os.path.relpath(source.describe(i), root) for i in range(len(source))]


def message(data: Path | str, split: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_source(str(data), split)
    text = str(caught.value)
    assert "\n" not in text
    return text
