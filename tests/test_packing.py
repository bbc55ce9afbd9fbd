"""`equimid pack`: what is written, gone on with, refused."""

import csv
import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from equimid.data import open_image, open_source, pack
from equimid.data.shards.writer import packed_image
from equimid.errors import UnreadableImage, UserError
from helpers.files import ORIENTATION, draw, noise
from helpers.packing_files import class_folders, contents, packed, photograph


def encoded(image: Image.Image, form: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def refused(data: Path | str, out: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        packed(data, out, **settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- one image


def test_a_small_upright_jpeg_is_copied():
    for image in (noise((40, 32)), noise((40, 32)).convert("L")):
        content = encoded(image, quality=71)
        for short_side in (0, 32, 64):
            assert packed_image(content, short_side, 90) == (content, (40, 32))


def test_the_short_side_is_bounded_and_never_enlarged():
    for size, short_side, expected in (
        ((100, 60), 30, (50, 30)),
        ((60, 100), 30, (30, 50)),
        ((301, 97), 32, (99, 32)),
        ((900, 2), 1, (450, 1)),
        ((20, 16), 30, (20, 16)),
        ((500, 400), 0, (500, 400)),
    ):
        content, told = packed_image(encoded(noise(size), "PNG"), short_side, 90)
        assert told == expected
        with Image.open(io.BytesIO(content)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", expected)
            # 4:2:0
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_a_smaller_copy_is_antialiased():
    stripes = np.zeros((256, 256, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    content, _ = packed_image(encoded(Image.fromarray(stripes), "PNG"), 32, 95)
    grey = np.asarray(open_image(io.BytesIO(content))).astype(int)
    assert abs(grey[4:-4, 4:-4] - 127.5).max() < 6


def test_what_is_not_a_plain_jpeg_becomes_one():
    """Turned by EXIF, CMYK, 16-bit grey, alpha: as `open_image` has them."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    smooth = noise((5, 4)).resize((50, 40), Image.Resampling.BICUBIC)
    ramp = np.tile(np.linspace(0, 65535, 50).astype(np.uint16), (40, 1))
    for content, size in (
        (encoded(smooth, exif=exif), (40, 50)),
        (encoded(smooth.convert("CMYK")), (50, 40)),
        (encoded(Image.fromarray(ramp), "PNG"), (50, 40)),
        (encoded(smooth.convert("RGBA"), "PNG"), (50, 40)),
    ):
        again, told = packed_image(content, 0, 95)
        assert (told, again == content) == (size, False)
        with Image.open(io.BytesIO(again)) as image:
            assert (image.format, image.mode, image.size, ORIENTATION in image.getexif()) == (
                "JPEG",
                "RGB",
                size,
                False,
            )
        now, then = (np.asarray(open_image(io.BytesIO(c))).astype(int) for c in (again, content))
        assert abs(now - then).mean() < 4
    exif[ORIENTATION] = 1
    content = encoded(smooth, exif=exif)
    assert packed_image(content, 0, 95)[0] == content


def test_the_quality_is_kept_to():
    lengths = [len(packed_image(encoded(noise((64, 64)), "PNG"), 32, quality)[0]) for quality in (30, 60, 90)]
    assert lengths == sorted(set(lengths))


def test_what_cannot_be_packed_says_why():
    for content, reason in (
        (b"", "0 bytes"),
        (b"hello", "not an image"),
        (encoded(noise())[:-400], "truncated"),
        (encoded(Image.new("L", (70_000, 2)), "PNG"), "a side of 70000 px"),
    ):
        with pytest.raises(UnreadableImage, match=reason):
            packed_image(content, 0, 90)


# --- the folder


def test_the_tars_are_webdataset_and_hold_every_image_once(tmp_path):
    data = class_folders(tmp_path / "data")
    done = packed(data, tmp_path / "out", short_side=0)
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert (done.images, done.unreadable, done.shards, done.written) == (24, 0, len(tars), len(tars))
    assert len(tars) > 2
    assert [tar.name for tar in tars] == [f"shard-{k:06}.tar" for k in range(len(tars))]
    assert done.bytes == sum(tar.stat().st_size for tar in tars)
    seen, orders = {}, []
    for k, tar in enumerate(tars):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(tar) as content:
            for member in content:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = content.extractfile(member).read()
            # what belongs together lies together, and the images come first
            assert [m.name for m in content] == [f"{key}.{s}" for key in samples for s in ("jpg", "cls", "json")]
        for key, sample in samples.items():
            text = json.loads(sample["json"])
            assert key == f"{k:06}-{text['number']:09}"
            assert text["class"] == f"class{int(sample['cls'])}"
            assert (text["width"], text["height"], text["label"]) == (48, 32, int(sample["cls"]))
            assert sample["jpg"] == (data / text["file"]).read_bytes()
            seen[text["file"]] = text["number"]
            orders.append(text["number"])
    assert [seen[f] for f in sorted(seen)] == list(range(24)), "numbered as the folder is listed"
    assert orders != sorted(orders), "shuffled"
    entries = json.loads((tmp_path / "out/pack.json").read_text())["parts"]["all"]["shards"]
    assert [entry["sha256"] for entry in entries] == [hashlib.sha256(tar.read_bytes()).hexdigest() for tar in tars]


def test_shards_are_about_as_long_as_wanted(tmp_path):
    data = class_folders(tmp_path / "data", n=90, size=(64, 64), quality=95)
    done = packed(data, tmp_path / "out", shard_bytes=60_000)
    lengths = [tar.stat().st_size for tar in (tmp_path / "out").glob("*.tar")]
    assert done.shards > 3
    assert all(40_000 < length < 80_000 for length in lengths)


def test_unreadable_files_are_left_out_and_listed(tmp_path):
    data = class_folders(tmp_path / "data", n=38)
    (data / "class0/bad,1.jpg").write_bytes(encoded(noise())[:-400])
    (data / "class1/bad2.png").write_text("hello")
    assert "2 of 40" in refused(data, tmp_path / "out", tolerated=0.04)
    with (tmp_path / "out/unreadable.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["file", "reason"],
            [str(data / "class0/bad,1.jpg"), "truncated"],
            [str(data / "class1/bad2.png"), "not an image"],
        ]
    text = refused(data, tmp_path / "out", tolerated=0.04)
    assert all(part in text for part in ("5.0 %", "tolerated 4.0 %", "--tolerated-unreadable 0.05", "(truncated)"))
    with pytest.raises(UserError, match="not packed wholly"):
        open_source(str(tmp_path / "out"))
    # the shards are there; a higher limit is enough
    done = packed(data, tmp_path / "out", tolerated=0.05)
    assert (done.images, done.unreadable, done.written) == (38, 2, 0)
    assert len(open_source(str(tmp_path / "out"))) == 38


def test_nothing_readable(tmp_path):
    for k in range(3):
        (tmp_path / f"data/{k}.jpg").parent.mkdir(exist_ok=True)
        (tmp_path / f"data/{k}.jpg").write_text("x")
    assert "no readable image" in refused(tmp_path / "data", tmp_path / "out", tolerated=1)
    (tmp_path / "empty").mkdir()
    assert "no image found" in refused(tmp_path / "empty", tmp_path / "out2")


def test_a_file_name_that_is_not_text(tmp_path):
    draw(tmp_path / "data/a.jpg")
    bad = os.fsencode(tmp_path / "data") + b"/\xff.jpg"
    try:
        Path(os.fsdecode(bad)).write_bytes((tmp_path / "data/a.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    packed(tmp_path / "data", tmp_path / "out")
    source = open_source(str(tmp_path / "out"))
    assert os.fsencode(source.describe(1)).endswith(b"shard-000000.tar: \xff.jpg")


# --- going on


def test_done_is_done_and_what_is_lost_is_made_again(tmp_path):
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    shards = packed(data, out).shards
    before, times = contents(out), {f.name: f.stat().st_mtime_ns for f in out.iterdir() if f.name != ".lock"}
    assert packed(data, out).written == 0
    assert {f.name: f.stat().st_mtime_ns for f in out.iterdir() if f.name != ".lock"} == times
    (out / "shard-000000.tar").unlink()
    (out / "shard-000001.npz").write_bytes(b"torn")
    (out / "shard-000002.tar").write_bytes(before["shard-000002.tar"][:-1])
    (out / ".shard-000000.0.writing").write_bytes(b"half")
    done = packed(data, out)
    assert (done.written, done.shards, contents(out)) == (3, shards, before)


def test_several_threads_write_the_same_bytes_and_tell_their_progress(tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "class0/bad.jpg").write_text("x")
    told: list[list[tuple[int, int]]] = [[], []]
    for k, workers in enumerate((1, 2)):
        packed(data, tmp_path / str(k), workers=workers, progress=lambda *counts, k=k: told[k].append(counts))
    assert contents(tmp_path / "0") == contents(tmp_path / "1")
    assert told[0] == [(k, 25) for k in range(1, 26)]
    assert told[1][-1] == (25, 25)


def test_an_interruption_ends_the_threads_and_keeps_whole_shards(tmp_path):
    data, out, threads = class_folders(tmp_path / "data"), tmp_path / "out", threading.active_count()

    def interrupt(done: int, total: int) -> None:
        if done == total - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed(data, out, workers=3, progress=interrupt)
    assert threading.active_count() == threads
    kept = len(list(out.glob("*.npz")))
    assert kept > 1
    assert not list(out.glob(".*.tmp"))
    done = packed(data, out)
    assert done.written == done.shards - kept
    packed(data, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


SCRIPT = """
import os, signal, sys
from pathlib import Path
import equimid.files as files
from equimid.data import pack
rename, left = os.replace, [int(sys.argv[3])]
def killed(*paths):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
files.os.replace = killed
pack(sys.argv[1], Path(sys.argv[2]), shard_bytes=30_000)
"""


def test_killed_and_gone_on_with(tmp_path):
    """Before the plan, between a tar and its index, in the middle, before pack.json: the same bytes in the end."""
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    shards = packed(data, tmp_path / "whole").shards
    whole = contents(tmp_path / "whole")
    for renames in (0, 2, 5, 2 * (shards - 2) + 1):
        command = [sys.executable, "-c", SCRIPT, str(data), str(out), str(renames)]
        assert subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == -signal.SIGKILL
        if renames:
            with pytest.raises(UserError, match=re.escape(f"run again: equimid pack {data} {out} --short-side ")):
                open_source(str(out))
    assert packed(data, out).written == 0
    assert contents(out) == whole


# --- refused


def test_other_settings_or_data_in_the_same_folder(tmp_path):
    data, out = class_folders(tmp_path / "data"), tmp_path / "out"
    packed(data, out)
    before = contents(out)
    text = refused(data, out, short_side=20, quality=80)
    assert "--short-side was 256 and is now 20, --quality was 90 and is now 80" in text
    assert "begun with other data" in refused(class_folders(tmp_path / "other", n=25), out)
    photograph(data / "class0/new.jpg", 99)
    assert "begun with other data" in refused(data, out)
    assert contents(out) == before


def test_a_folder_of_something_else(tmp_path):
    data = class_folders(tmp_path / "data", n=4)
    for name in ("notes.txt", "pack.json"):
        other = tmp_path / name.partition(".")[0]
        other.mkdir()
        (other / name).write_text("{}")
        assert f"holds other files ({name})" in refused(data, other)
        assert contents(other) == {name: b"{}"}
    assert "is a file" in refused(data, tmp_path / "notes/notes.txt")
    assert "cannot write into" in refused(data, tmp_path / "notes/notes.txt/below")


@pytest.mark.parametrize("below", ["", "out", "class0/out"])
def test_out_inside_data(tmp_path, below):
    data = class_folders(tmp_path / "data", n=4)
    assert "give a folder outside it" in refused(data, data / below)
    assert sorted(file.name for file in data.iterdir()) == ["class0", "class1", "class2"]


def test_what_is_refused_leaves_no_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/0.jpg").write_text("x")
    assert "0.jpg (not an image)" in refused(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert "no readable image" in refused(tmp_path / "data", tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_settings_are_told_as_they_are_typed(tmp_path):
    data, out = class_folders(tmp_path / "data", n=4), tmp_path / "out"
    (data / "class0/bad.jpg").write_text("x")
    settings = {"short_side": 30, "quality": 80, "shard_bytes": 2**20}
    refused(data, out, **settings)
    with pytest.raises(UserError) as caught:
        open_source(str(out))
    assert f"equimid pack {data} {out} --short-side 30 --quality 80 --shard-mib 1 " in str(caught.value)
    text = refused(data, out, short_side=30, quality=90, shard_bytes=2**21)
    assert "(--quality was 80 and is now 90, --shard-mib was 1 and is now 2)" in text


def test_what_is_no_folder_of_images(tmp_path):
    assert "known by name" in refused("digits", tmp_path / "out")
    assert "does not exist" in refused(tmp_path / "none", tmp_path / "out")
    packed(class_folders(tmp_path / "data", n=4), tmp_path / "out")
    assert "packed already" in refused(tmp_path / "out", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_bad_settings(tmp_path):
    data = class_folders(tmp_path / "data", n=4)
    for settings in ({"short_side": -1}, {"quality": 0}, {"quality": 100}, {"shard_bytes": 0}, {"workers": 0},
                     {"tolerated": 1.5}):  # fmt: skip
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            pack(str(data), tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_two_at_once(tmp_path):
    data = class_folders(tmp_path / "data", n=4)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert "in use by another equimid pack" in refused(data, tmp_path / "out")


def test_a_full_disk_leaves_whole_shards_and_is_gone_on_with(tmp_path):
    """The kernel refuses to let the file grow, as a full disk would."""
    data, out = class_folders(tmp_path / "data", n=6), tmp_path / "out"
    photograph(data / "class0/large.jpg", 0, size=(600, 600), quality=95)
    packed(data, tmp_path / "whole", short_side=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (25_000, limits[1]))
        text = refused(data, out, short_side=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert re.search(r"could not write into .*: File too large; 1 of 2 shards are written", text)
    assert not list(out.glob(".*.writing"))
    packed(data, out, short_side=0)
    assert contents(out) == contents(tmp_path / "whole")
