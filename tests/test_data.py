"""Data: formats to RGB, what is found where, splits, the ledger and every message."""

import os
import pickle
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
    TorchvisionSource,
    check_images,
    holdout,
    open_source,
    pack,
)
from equimid.errors import UnreadableImage, UserError
from helpers.files import draw, message, noise, pixels, relative

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


@pytest.mark.parametrize("second", ["test", "val", "Validation", "valid", "dev", "testing", "eval", "validate"])
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


def test_folders_beside_train_and_test_are_named_as_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("training/a/1.png", "test/a/2.png", "val/a/3.png", "extra/4.png"):
        draw(tmp_path / name)
    assert relative(open_source(str(tmp_path)), tmp_path) == ["training/a/1.png"]
    assert relative(open_source(str(tmp_path), "test"), tmp_path) == ["test/a/2.png"]
    (line,) = [r.getMessage() for r in caplog.records]
    assert "not read: extra, val" in line


def test_what_equimid_wrote_is_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "a/1.png")
    for folder, files in {
        "runs/ser-small-data": ("config.yaml", "data.json"),
        "measured/net": ("model.yaml", "records.jsonl"),
    }.items():
        draw(tmp_path / folder / "pictures/map.png")
        for name in files:
            text = {
                "config.yaml": "recipe: ser-small\nbackbone: {}\nmethod: {}\n",
                "model.yaml": "model: a\nweights: b\n",
            }
            (tmp_path / folder / name).write_text(text.get(name, ""))
    # of other programs
    for name, file in (("mine", "config.yaml"), ("b", "sweep.yaml"), ("c", "pack.json")):
        draw(tmp_path / name / "2.png")
        (tmp_path / name / file).write_text("method: grid\nparameters: {}\n")
    assert relative(open_source(str(tmp_path)), tmp_path) == ["a/1.png", "b/2.png", "c/2.png", "mine/2.png"]
    assert sorted(r.getMessage().split(" is not read")[0] for r in caplog.records) == sorted(
        str(tmp_path / name) for name in ("runs/ser-small-data", "measured/net")
    )
    # nor is it a folder of test images
    for name in ("train/x/1.png", "eval/x/2.png"):
        draw(tmp_path / "split" / name)
    assert len(open_source(str(tmp_path / "split"))) == 1
    (tmp_path / "split/eval/model.yaml").write_text("model: a\nweights: b\n")
    assert relative(open_source(str(tmp_path / "split")), tmp_path) == ["split/train/x/1.png"]
    # what a user names is read, whatever it is
    assert len(open_source(str(tmp_path / "runs/ser-small-data"))) == 1


def test_images_of_kinds_that_are_not_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    draw(tmp_path / "1.png")
    for name in ("a.heic", "b.HEIC", "c.dcm", "notes.txt"):
        (tmp_path / name).write_text("")
    assert len(open_source(str(tmp_path))) == 1
    open_source(str(tmp_path))
    (line,) = [r.getMessage() for r in caplog.records]
    assert "3 files" in line
    assert "2 .heic, 1 .dcm" in line


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
    image_check = check_images(source, smallest_side=1, tolerated=0.5)
    assert image_check.unreadable == ((2, str(tmp_path / "gone.png"), "no such file"),)


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


def test_all_lines_of_a_file_lie_in_one_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{k}.png" for k in range(20)]
    rare = ["rare.png"] * 10
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{name}\t{'b' if name in rare else 'a'}\n" for name in [*names, *rare, "other.png"]))
    train, test = (relative(open_source(str(listing), split), tmp_path) for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(train) + len(test) == 31
    assert len(open_source(str(listing))) == 31
    assert "31 lines name 22 files" in caplog.text
    # the same split where the lines are packed
    for name in {*names, *rare, "other.png"}:
        draw(tmp_path / name)
    pack(str(listing), tmp_path / "shards", shard_bytes=3000)
    files = [[source.describe(i).rpartition(" ")[2] for i in range(len(source))]
             for source in (open_source(str(tmp_path / "shards"), split) for split in ("train", "test"))]  # fmt: skip
    assert [sorted(part) for part in files] == [sorted(train), sorted(test)]
    # labels count in a probe, and not while pretraining
    listing.write_text("a.png\tx\nb.png\ty\na.png\ty\n")
    assert len(open_source(str(listing))) == 3
    with pytest.raises(UserError, match=r"a\.png with the labels 'x' and 'y'"):
        open_source(str(listing), "train")


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
    fraction = np.bincount(test.labels) / np.bincount(np.concatenate([train.labels, test.labels]))
    assert np.abs(fraction - 360 / 1797).max() < 0.005
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
    def reject_settings(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    draw(tmp_path / "a.png")
    monkeypatch.setattr(os, "scandir", reject_settings)
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
