"""Any image file to RGB, or a reason."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from equimid.data import (
    open_image,
    read_size,
)
from equimid.errors import UnreadableImage
from helpers.files import ORIENTATION, draw, noise, pixels, reason_of


def test_grey_and_rgb_keep_their_values(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert (pixels(open_image(tmp_path / "l.png")) == grey[..., None]).all()
    noise().save(tmp_path / "rgb.png")
    assert (pixels(open_image(tmp_path / "rgb.png")) == pixels(noise())).all()


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.eye(8, dtype=bool)
    Image.fromarray(bits).save(tmp_path / "bits.png")
    with Image.open(tmp_path / "bits.png") as image:
        assert image.mode == "1"
    assert (pixels(open_image(tmp_path / "bits.png")) == 255 * bits[..., None]).all()


@pytest.mark.parametrize(
    ("mode", "stored", "shown"),
    [
        ("LA", [(100, 0), (100, 255), (100, 51)], [[255] * 3, [100] * 3, [224] * 3]),
        ("RGBA", [(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)], [[255] * 3, [10, 20, 30], [204] * 3]),
    ],
)
def test_alpha_is_laid_over_white(tmp_path: Path, mode: str, stored: Any, shown: Any) -> None:
    image = Image.new(mode, (3, 1))
    image.putdata(stored)
    image.save(tmp_path / "a.png")
    assert pixels(open_image(tmp_path / "a.png"))[0].tolist() == shown


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "p.png")
    image.save(tmp_path / "clear.png", transparency=0)
    image.save(tmp_path / "p.gif")
    assert pixels(open_image(tmp_path / "p.png"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert pixels(open_image(tmp_path / "p.gif"))[0].tolist() == [[10, 20, 30], [40, 50, 60]]
    assert pixels(open_image(tmp_path / "clear.png"))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_cmyk_jpeg_is_ink(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=100)
    with Image.open(tmp_path / "cyan.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(pixels(open_image(tmp_path / "cyan.jpg")).astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize(("name", "dtype"), [("a.png", "<u2"), ("a.tif", "<u2"), ("b.tif", ">u2"), ("a.pgm", "<u2")])
def test_16_bits_scale_by_the_whole_range(tmp_path: Path, name: str, dtype: str) -> None:
    Image.fromarray(np.array([[0, 128, 129, 257, 32768, 65535]], dtype=dtype)).save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        assert image.mode.startswith("I")
    assert pixels(open_image(tmp_path / name))[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]


def test_12_bit_tiff_scales_by_its_own_range() -> None:
    # little endian, one strip of four 12-bit values: 0, 2048, 4095, 4095
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 6)]
    strip = bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF])
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    file = b"II*\0" + struct.pack("<I", 14) + strip + struct.pack("<H", len(tags)) + entries + bytes(4)
    assert pixels(open_image(io.BytesIO(file)))[0, :, 0].tolist() == [0, 128, 255, 255]


def test_ranges_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)).save(tmp_path / "i.tif")
    Image.new("LAB", (8, 8)).save(tmp_path / "lab.tif")
    assert "float" in reason_of(tmp_path / "f.tif")
    assert "0..65535" in reason_of(tmp_path / "i.tif")
    assert "Lab" in reason_of(tmp_path / "lab.tif")
    with pytest.raises(UnreadableImage, match="float"):
        read_size(tmp_path / "f.tif")


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_exif_orientation_turns_the_pixels(tmp_path: Path, mode: str) -> None:
    upright = np.arange(6).reshape(3, 2)  # 2 wide, 3 high
    stored = np.rot90(upright)  # orientation 6: shown after a quarter turn clockwise
    scaled = (stored * 257).astype(np.uint16) if mode == "I;16" else np.repeat(stored[..., None], 3, 2)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.fromarray(scaled if mode == "I;16" else scaled.astype(np.uint8))
    image.save(tmp_path / "turned.png", exif=exif)
    assert pixels(open_image(tmp_path / "turned.png"))[..., 0].tolist() == upright.tolist()


def test_damaged_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    noise().save(tmp_path / "a.png", exif=b"Exif\0\0not a TIFF header")
    with Image.open(tmp_path / "a.png") as image, pytest.raises(SyntaxError):
        image.getexif()
    assert (pixels(open_image(tmp_path / "a.png")) == pixels(noise())).all()


def test_unreadable_files_say_why(tmp_path: Path) -> None:
    noise().save(tmp_path / "whole.jpg")
    noise().save(tmp_path / "whole.png")
    for kind in ("jpg", "png"):
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"half.{kind}").write_bytes(content[: len(content) // 2])
        assert reason_of(tmp_path / f"half.{kind}") == "truncated"
    (tmp_path / "text.png").write_text("not at all")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert reason_of(tmp_path / "text.png") == "not an image"
    assert reason_of(tmp_path / "empty.png") == "0 bytes"
    assert reason_of(io.BytesIO()) == "0 bytes"
    assert reason_of(tmp_path / "absent.png") == "no such file"
    assert reason_of(tmp_path / "folder.png") == "a folder, not a file"


def test_decompression_bomb_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "a.png", size=(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "million pixels" in reason_of(tmp_path / "a.png")


def test_lack_of_memory_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "a.png")
