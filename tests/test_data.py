"""Data: formats to RGB, what is found where, splits, the ledger and every message."""

import csv
import io
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import filelock
import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from equimid.data import (
    KNOWN_NAMES,
    ArraySource,
    FileSource,
    Ledger,
    Source,
    TorchvisionSource,
    check_images,
    holdout,
    ledger_for,
    open_image,
    open_source,
    read_size,
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


# --- decoding


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


# --- folders


def test_folder_is_searched_at_any_depth_in_order(tmp_path: Path) -> None:
    names = ["b.PNG", "a/z.jpg", "a/b/c/d.tiff", "c.webp"]
    for name in [*names, ".hidden.png", ".git/x.png", "a/._z.jpg"]:
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_source(str(tmp_path))
    assert relative(source, tmp_path) == sorted(names)
    assert (source.labels, source.classes, source.split) == (None, (), "all")
    assert source.load(0).size == (8, 8)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    draw(tmp_path / "data/a/x.png")
    draw(tmp_path / "elsewhere/y.png")
    (tmp_path / "data/a/up").symlink_to(tmp_path / "data")
    (tmp_path / "data/out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/self.png").symlink_to(tmp_path / "data/self.png")
    (tmp_path / "data/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(str(tmp_path / "data"))
    assert relative(source, tmp_path / "data") == ["a/x.png", "gone.png", "out/y.png", "self.png"]
    reasons = {os.path.basename(d): r for _, d, r in check_images(source, smallest_side=1, tolerated=1).unreadable}
    assert set(reasons) == {"gone.png", "self.png"}
    assert reasons["gone.png"] == "no such file"


def test_class_folders_are_labels(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/deep/2.png", "cat/1.png"):
        draw(tmp_path / name)
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1]
    draw(tmp_path / "stray.png")
    assert open_source(str(tmp_path)).labels is None


def test_one_class_folder_is_no_label(tmp_path: Path) -> None:
    draw(tmp_path / "only/1.png")
    assert open_source(str(tmp_path)).labels is None


@pytest.mark.parametrize("second", ["test", "val", "Validation"])
def test_train_and_test_folders(tmp_path: Path, second: str) -> None:
    for name in ("train/b/1.png", "train/c/2.png", f"{second}/a/3.png", f"{second}/c/4.png"):
        draw(tmp_path / name)
    train, test, default = (open_source(str(tmp_path), split) for split in ("train", "test", None))
    assert relative(train, tmp_path) == relative(default, tmp_path) == ["train/b/1.png", "train/c/2.png"]
    assert relative(test, tmp_path) == [f"{second}/a/3.png", f"{second}/c/4.png"]
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 2], [0, 2])
    assert [s.split for s in (train, test, default)] == ["train", "test", "train"]


def test_plain_folder_is_split_80_to_20_in_proportion(tmp_path: Path) -> None:
    for k in range(60):
        draw(tmp_path / ("few" if k < 10 else "many") / f"{k:02}.png")
    train, test = open_source(str(tmp_path), "train"), open_source(str(tmp_path), "test")
    parts = [set(relative(s, tmp_path)) for s in (train, test)]
    assert parts[0] | parts[1] == set(relative(open_source(str(tmp_path)), tmp_path))
    assert not parts[0] & parts[1]
    assert train.labels is not None
    assert test.labels is not None
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([8, 40], [2, 10])
    assert relative(open_source(str(tmp_path), "test"), tmp_path) == relative(test, tmp_path)
    for i in range(len(test)):
        assert test.classes[test.labels[i]] == Path(test.describe(i)).parent.name


def test_unlabelled_folder_splits_too(tmp_path: Path) -> None:
    for k in range(10):
        draw(tmp_path / f"{k}.png")
    assert [len(open_source(str(tmp_path), s)) for s in ("train", "test", None)] == [8, 2, 10]


# --- text files


def test_list_of_paths_with_labels(tmp_path: Path) -> None:
    draw(tmp_path / "in/a b.png")
    draw(tmp_path / "c.png")
    lines = ["# mine", "", "in/a b.png\t10", f"{tmp_path / 'c.png'} \t 9\r", "gone.png\t10"]
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join(lines))
    source = open_source(str(listing))
    assert relative(source, tmp_path) == ["in/a b.png", "c.png", "gone.png"]
    assert source.classes == ("9", "10")
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 1]
    ledger = check_images(source, smallest_side=1, tolerated=0.5)
    assert ledger.unreadable == ((2, str(tmp_path / "gone.png"), "no such file"),)


def test_list_without_labels_and_its_mistakes(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("a.png\nb.png\n")
    assert open_source(str(listing)).labels is None
    listing.write_text("# nothing\n\n")
    assert "no path in" in message(listing)
    listing.write_text("a.png\tx\nb.png\n")
    assert "line 2 has no label" in message(listing)
    listing.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(listing)


# --- known names


def test_digits() -> None:
    train, test = open_source("digits"), open_source("digits", "test")
    assert isinstance(train, ArraySource)
    assert isinstance(test, ArraySource)
    assert (len(train), len(test)) == (1437, 360)
    assert train.fingerprint() == open_source("digits", "train").fingerprint()
    assert sorted([*train.numbers, *test.numbers]) == list(range(1797))
    assert train.labels is not None
    assert test.labels is not None
    share = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.abs(share - 360 / 1797).max() < 0.005
    assert train.images.dtype == np.uint8
    assert (train.images.min(), train.images.max()) == (0, 255)
    # the split is fixed: results of different days compare
    assert test.numbers[:5].tolist() == [21, 24, 28, 34, 35]
    image = pixels(train.load(3))
    assert (image == train.images[3][..., None]).all()
    assert train.describe(3) == f"digits[{train.numbers[3]}]"


def test_known_name_wins_over_a_folder_unless_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "digits/a.png")
    draw(tmp_path / "photos/a.png")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_source("digits"), ArraySource)
    assert isinstance(open_source("./digits"), FileSource)
    assert len(open_source("photos")) == 1


class Published(list[tuple[Image.Image, int]]):
    """Stands in for a torchvision data set: ten images, downloaded as one file."""

    downloads = 0

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        file = Path(root) / ("train" if train else "test")
        if download:
            type(self).downloads += 1
            file.touch()
        if not file.exists():
            raise RuntimeError("Dataset not found.")
        super().__init__((Image.new("L", (8, 8), k + 100 * train), k % 2) for k in range(10))
        self.targets = [k % 2 for k in range(10)]
        self.classes = ["even", "odd"]


def test_published_data_are_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path / "new/home"))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Published)
    monkeypatch.setattr(Published, "downloads", 0)
    (tmp_path / "new/home/cifar10.part/torn").mkdir(parents=True)  # from a download that was cut off
    train, test = open_source("cifar10"), open_source("cifar10", "test")
    assert Published.downloads == 2  # both parts, once
    assert sorted(os.listdir(tmp_path / "new/home/cifar10")) == ["test", "train"]
    assert isinstance(test, TorchvisionSource)
    assert (train.split, train.classes) == ("train", ("even", "odd"))
    assert pixels(train.load(3)).max() == 103
    left = test.without([0, 1])
    assert left.labels is not None
    assert (len(left), left.labels[1], left.describe(1), pixels(left.load(1)).max()) == (
        8,
        1,
        "cifar10[3]",
        3,
    )
    assert left.fingerprint() != test.fingerprint()
    assert check_images(test, smallest_side=8).checked == "decoded"


def test_two_processes_download_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Waited(filelock.FileLock):
        """While this process waits for the lock, the other one finishes."""

        def __enter__(self) -> Any:
            (tmp_path / "cifar10").mkdir()
            (tmp_path / "cifar10/train").touch()
            return super().__enter__()

    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Published)
    monkeypatch.setattr(Published, "downloads", 0)
    monkeypatch.setattr(filelock, "FileLock", Waited)
    assert len(open_source("cifar10")) == 10
    assert Published.downloads == 0


def test_eurosat_gets_our_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in range(20):
        draw(tmp_path / f"eurosat/eurosat/2750/{('Forest', 'River')[k % 2]}/{k}.jpg")
    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path))
    train, test = open_source("eurosat"), open_source("eurosat", "test")
    assert (len(train), len(test), test.classes) == (16, 4, ("Forest", "River"))
    assert test.labels is not None
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert not {train.describe(i) for i in range(16)} & {test.describe(i) for i in range(4)}


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise URLError("Name or service\nnot known")

    monkeypatch.setenv("EQUIMID_DATA", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", fail)
    text = message("cifar10")
    for part in (
        "'cifar10'",
        "not known",
        "torchvision.datasets.CIFAR10",
        str(tmp_path / "cifar10"),
        "or give a folder",
    ):
        assert part in text
    assert not (tmp_path / "cifar10").exists()
    (tmp_path / "cifar10").mkdir()
    assert "delete that folder" in message("cifar10")


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    text = message("cifra10")
    assert "did you mean 'cifar10'?" in text
    assert all(name in text for name in KNOWN_NAMES)
    assert "did you mean" not in message("zzzzzz")
    assert "neither" in message("")
    assert "does not exist" in message(tmp_path / "absent")
    assert "no image found" in message(tmp_path)
    assert "single file" in message(draw(tmp_path / "one.png"))
    assert "at least two images" in message(tmp_path, "test")
    assert "unknown split 'val'" in message(tmp_path, "val")


def test_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    draw(tmp_path / "a.png")
    monkeypatch.setattr(os, "scandir", refuse)
    assert "Permission denied" in message(tmp_path)


# --- sources as values


def test_sources_travel_to_data_workers(tmp_path: Path) -> None:
    draw(tmp_path / "x/ä.png", (1, 2, 3))
    draw(tmp_path / "y/b.png")
    for source in (open_source(str(tmp_path)), open_source("digits", "test")):
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.describe(0), copy.fingerprint()) == (source.describe(0), source.fingerprint())
        assert (pixels(copy.load(0)) == pixels(source.load(0))).all()
    error = pickle.loads(pickle.dumps(UnreadableImage("truncated")))
    assert error.reason == "truncated"


def test_without_leaves_the_rest_in_order(tmp_path: Path) -> None:
    for k in range(6):
        draw(tmp_path / f"{'ab'[k % 2]}/{k}.png")
    whole = open_source(str(tmp_path))
    rest = whole.without([1, 3])
    assert relative(rest, tmp_path) == ["a/0.png", "a/4.png", "b/3.png", "b/5.png"]
    assert rest.labels is not None
    assert rest.labels.tolist() == [0, 0, 1, 1]
    assert len(whole) == 6
    with pytest.raises(IndexError):
        whole.without([6])


def test_fingerprint_sees_changes_and_only_them(tmp_path: Path) -> None:
    for name in ("data/x/a.png", "data/y/b.png"):
        noise().save(draw(tmp_path / name))

    def now(folder: str = "data") -> str:
        return open_source(str(tmp_path / folder)).fingerprint()

    seen = [now()]
    assert now() == seen[0]
    (tmp_path / "data/notes.md").touch()
    os.utime(tmp_path / "data/x/a.png", (0, 0))
    assert now() == seen[0]
    (tmp_path / "data").rename(tmp_path / "moved")
    assert now("moved") == seen[0]
    draw(tmp_path / "moved/x/c.png")
    seen.append(now("moved"))
    draw(tmp_path / "moved/x/a.png")  # smaller
    seen.append(now("moved"))
    (tmp_path / "moved/x/c.png").rename(tmp_path / "moved/x/d.png")
    seen.append(now("moved"))
    (tmp_path / "moved/x/d.png").rename(tmp_path / "moved/y/c.png")
    seen.append(now("moved"))
    (tmp_path / "moved/y/c.png").unlink()
    seen.append(now("moved"))
    assert len(set(seen)) == 6


def test_fingerprint_of_arrays_is_of_pixels() -> None:
    source = open_source("digits", "test")
    assert isinstance(source, ArraySource)
    changed = source.images.copy()
    changed[7, 3, 3] ^= 1
    assert replace(source, images=changed).fingerprint() != source.fingerprint()


# --- holdout


def test_holdout_keeps_proportions_and_single_images() -> None:
    labels = np.array(["a"] * 50 + ["b"] * 10 + ["c"])
    fit, held = holdout(labels, 0.2, seed=3)
    assert sorted([*fit, *held]) == list(range(61))
    assert np.unique(labels[held], return_counts=True)[1].tolist() == [10, 2]
    assert 60 in fit
    assert (np.diff(held) > 0).all()
    assert holdout(labels, 0.2, seed=3)[1].tolist() == held.tolist() != holdout(labels, 0.2, seed=4)[1].tolist()
    # more classes than a fifth of the images
    assert len(holdout(np.repeat(np.arange(4), 2), 0.2, seed=0)[1]) == 4
    with pytest.raises(UserError, match="3 images in 3 classes"):
        holdout(np.arange(3), 0.2, seed=0)


# --- the ledger


def damaged_folder(folder: Path, good: int) -> Path:
    for k in range(good):
        draw(folder / f"good{k:03}.png", size=(16, 16))
    noise().save(folder / "bad1.jpg")
    content = (folder / "bad1.jpg").read_bytes()
    (folder / "bad1.jpg").write_bytes(content[: len(content) // 2])
    (folder / "bad2.png").write_text("hello")
    draw(folder / "bad3.png", size=(24, 9))
    return folder


def test_ledger_lists_and_leaves_out(tmp_path: Path) -> None:
    source = open_source(str(damaged_folder(tmp_path / "data", 17)))
    calls: list[tuple[int, int]] = []
    ledger = ledger_for(
        source,
        tmp_path / "run",
        smallest_side=16,
        tolerated=0.15,
        progress=lambda done, all_: calls.append((done, all_)),
    )
    names = [str(tmp_path / "data" / n) for n in ("bad1.jpg", "bad2.png", "bad3.png")]
    reasons = ["truncated", "not an image", "24 x 9 px, smaller than a patch of 16 px"]
    assert ledger.unreadable == tuple(zip(range(3), names, reasons, strict=True))
    assert (ledger.listed, ledger.checked) == (20, "decoded")
    assert calls == [(k, 20) for k in range(1, 21)]
    with (tmp_path / "run/unreadable.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["file", "reason"], *map(list, zip(names, reasons, strict=True))]
    assert Ledger.load(tmp_path / "run") == ledger
    assert relative(ledger.apply(source), tmp_path / "data") == [f"good{k:03}.png" for k in range(17)]
    with pytest.raises(ValueError, match="check it anew"):
        ledger.apply(source.without([0]))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_ledger_of_good_images_is_written_too(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.png")
    source = open_source(str(tmp_path / "data"))
    ledger = ledger_for(source, tmp_path / "run", smallest_side=8)
    assert (tmp_path / "run/unreadable.csv").read_text().split() == ["file,reason"]
    assert ledger.apply(source) is source


def test_processes_of_one_run_save_the_same_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data/a.png")
    ledger = check_images(open_source(str(tmp_path / "data")), smallest_side=8)
    rename = os.replace
    others = [ledger.save] * 2

    def interleaved(beside: Path, final: Path) -> None:
        if others:
            others.pop()(tmp_path / "run")
        rename(beside, final)

    monkeypatch.setattr(os, "replace", interleaved)
    ledger.save(tmp_path / "run")
    assert not others
    assert Ledger.load(tmp_path / "run") == ledger


def test_too_many_unreadable_name_share_limit_examples_and_remedy(tmp_path: Path) -> None:
    source = open_source(str(damaged_folder(tmp_path / "data", 16)))
    with pytest.raises(UserError) as caught:
        ledger_for(source, tmp_path / "run", smallest_side=16)
    text = str(caught.value)
    for part in (
        "3 of 19",
        "15.8 %",
        "tolerated 5.0 %",
        "bad1.jpg (truncated)",
        "data.tolerated_unreadable=0.2",
    ):
        assert part in text
    assert "\n" not in text
    # the list is there all the same, and the advice works
    assert "bad2.png" in (tmp_path / "run/unreadable.csv").read_text()
    assert len(ledger_for(source, tmp_path / "run", smallest_side=16, tolerated=0.2).unreadable) == 3
    with pytest.raises(UserError, match="3 of 19"):
        check_images(source, smallest_side=16)


def test_no_usable_image(tmp_path: Path) -> None:
    source = open_source(str(damaged_folder(tmp_path, 2)))
    with pytest.raises(UserError, match=r"no readable image in .* none of 3 .*truncated.*16 x 16 px") as caught:
        check_images(source.without([1, 2]), smallest_side=32, tolerated=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no image found in digits"):
        check_images(open_source("digits").without(range(1437)), smallest_side=1)


def test_image_in_memory_smaller_than_a_patch() -> None:
    assert check_images(open_source("digits"), smallest_side=8).checked == "sizes"
    with pytest.raises(UserError, match="8 x 8 px, smaller than a patch of 16 px"):
        check_images(open_source("digits"), smallest_side=16)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Indices of the files that were decoded so far."""
    indices: list[int] = []
    load = FileSource.load

    def counting(source: FileSource, i: int) -> Image.Image:
        indices.append(i)
        return load(source, i)

    monkeypatch.setattr(FileSource, "load", counting)
    return indices


def test_ledger_is_reused_until_something_changes(tmp_path: Path, decoded: list[int]) -> None:
    data, run = damaged_folder(tmp_path / "data", 5), tmp_path / "run"

    def ledger(smallest_side: int) -> tuple[Ledger, int]:
        decoded.clear()
        return ledger_for(open_source(str(data)), run, smallest_side=smallest_side, tolerated=1), len(decoded)

    first, count = ledger(16)
    assert (count, len(first.unreadable)) == (8, 3)
    assert ledger(16) == (first, 0)
    # another patch
    second, count = ledger(4)
    assert (count, len(second.unreadable)) == (8, 2)
    # other data
    draw(data / "new.png", size=(16, 16))
    third, count = ledger(4)
    assert (count, third.listed) == (9, 9)
    # a torn file
    (run / "data.json").write_text("{ torn")
    assert Ledger.load(run) is None
    assert ledger(4) == (third, 9)
    assert ledger(4) == (third, 0)


def test_many_files_are_checked_by_their_headers(tmp_path: Path, decoded: list[int]) -> None:
    source = open_source(str(damaged_folder(tmp_path, 5)))
    ledger = check_images(source, smallest_side=16, tolerated=1, decode_all_below=7)
    assert (decoded, ledger.checked) == ([], "headers")
    assert [Path(d).name for _, d, _ in ledger.unreadable] == ["bad2.png", "bad3.png"]


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.png")
    bad = os.fsencode(tmp_path / "data") + b"/\xff,x.png"
    try:
        Path(os.fsdecode(bad)).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    source = open_source(str(tmp_path / "data"))
    ledger = ledger_for(source, tmp_path / "run", smallest_side=1, tolerated=0.5)
    assert ledger.unreadable[0][1] == os.fsdecode(bad)
    assert Ledger.load(tmp_path / "run") == ledger
    assert b"\xff,x.png" in (tmp_path / "run/unreadable.csv").read_bytes()
