"""Which images are left out, and why."""

import csv
import os
from pathlib import Path

import pytest
from PIL import Image

from equimid.data import (
    FileSource,
    ImageCheck,
    check_images,
    open_source,
)
from equimid.errors import UserError
from helpers.files import draw, noise, relative


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
    image_check = check_images(
        source,
        tmp_path / "run",
        smallest_side=16,
        tolerated=0.15,
        progress=lambda done, all_: calls.append((done, all_)),
    )
    names = [str(tmp_path / "data" / n) for n in ("bad1.jpg", "bad2.png", "bad3.png")]
    reasons = ["truncated", "not an image", "24 x 9 px, smaller than a patch of 16 px"]
    assert image_check.unreadable == tuple(zip(range(3), names, reasons, strict=True))
    assert (image_check.listed, image_check.checked) == (20, "decoded")
    assert calls == [(k, 20) for k in range(1, 21)]
    with (tmp_path / "run/unreadable.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["file", "reason"], *map(list, zip(names, reasons, strict=True))]
    assert ImageCheck.load(tmp_path / "run") == image_check
    assert relative(image_check.apply(source), tmp_path / "data") == [f"good{k:03}.png" for k in range(17)]
    with pytest.raises(ValueError, match="check again"):
        image_check.apply(source.without([0]))
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_ledger_of_good_images_is_written_too(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.png")
    source = open_source(str(tmp_path / "data"))
    image_check = check_images(source, tmp_path / "run", smallest_side=8)
    assert (tmp_path / "run/unreadable.csv").read_text().split() == ["file,reason"]
    assert image_check.apply(source) is source


def test_processes_of_one_run_save_the_same_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "data/a.png")
    image_check = check_images(open_source(str(tmp_path / "data")), smallest_side=8)
    rename = os.replace
    others = [image_check.save] * 2

    def interleaved(beside: Path, final: Path) -> None:
        if others:
            others.pop()(tmp_path / "run")
        rename(beside, final)

    monkeypatch.setattr(os, "replace", interleaved)
    image_check.save(tmp_path / "run")
    assert not others
    assert ImageCheck.load(tmp_path / "run") == image_check


def test_too_many_unreadable_name_share_limit_examples_and_remedy(tmp_path: Path) -> None:
    source = open_source(str(damaged_folder(tmp_path / "data", 16)))
    with pytest.raises(UserError) as caught:
        check_images(source, tmp_path / "run", smallest_side=16)
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
    assert len(check_images(source, tmp_path / "run", smallest_side=16, tolerated=0.2).unreadable) == 3
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

    def image_check(smallest_side: int) -> tuple[ImageCheck, int]:
        decoded.clear()
        return check_images(open_source(str(data)), run, smallest_side=smallest_side, tolerated=1), len(decoded)

    first, count = image_check(16)
    assert (count, len(first.unreadable)) == (8, 3)
    assert image_check(16) == (first, 0)
    # another patch
    second, count = image_check(4)
    assert (count, len(second.unreadable)) == (8, 2)
    # other data
    draw(data / "new.png", size=(16, 16))
    third, count = image_check(4)
    assert (count, third.listed) == (9, 9)
    # a torn file
    (run / "data.json").write_text("{ torn")
    assert ImageCheck.load(run) is None
    assert image_check(4) == (third, 9)
    assert image_check(4) == (third, 0)


def test_many_files_are_checked_by_their_headers(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("equimid.data.image_check._DECODE_UP_TO", 7)
    source = open_source(str(damaged_folder(tmp_path, 5)))
    image_check = check_images(source, smallest_side=16, tolerated=1)
    assert (decoded, image_check.checked) == ([], "headers")
    assert [Path(d).name for _, d, _ in image_check.unreadable] == ["bad2.png", "bad3.png"]


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    draw(tmp_path / "data/a.png")
    bad = os.fsencode(tmp_path / "data") + b"/\xff,x.png"
    try:
        Path(os.fsdecode(bad)).write_bytes(b"no image")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    source = open_source(str(tmp_path / "data"))
    image_check = check_images(source, tmp_path / "run", smallest_side=1, tolerated=0.5)
    assert image_check.unreadable[0][1] == os.fsdecode(bad)
    assert ImageCheck.load(tmp_path / "run") == image_check
    assert b"\xff,x.png" in (tmp_path / "run/unreadable.csv").read_bytes()
