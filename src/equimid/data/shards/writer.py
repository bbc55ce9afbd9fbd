"""One shard written: its images decoded, made smaller, encoded, put into a tar; and its index."""

import hashlib
import io
import json
import os
import secrets
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import IO, Any

from PIL import Image

from equimid.data.decode import open_image
from equimid.data.shards.format import write_index
from equimid.data.sources import FileSource, Indices
from equimid.errors import UnreadableImage

__all__ = ["BLOCK", "Job", "Work", "packed_image"]

BLOCK = 512  # bytes; what a tar is made of
_ORIENTATION = 0x0112
_LONGEST = 65_535  # px of a side that a JPEG can have


@dataclass(frozen=True)
class Job:
    """A shard to be written: its number and name, the part it belongs to, the images for it in their order."""

    number: int
    name: str
    part: str
    images: Indices


class _StoppedError(Exception):
    """Another process failed, or the user stopped packing."""


@dataclass(frozen=True)
class Work:
    """What the processes share: the data, and the main process's word to stop; `done` counts images."""

    sources: dict[str, FileSource]
    settings: dict[str, int]
    out: Path
    stop: Event
    done: "Synchronized[int]"

    def write(self, job: Job, tick: Callable[[], None] = lambda: None) -> None:
        """A shard beside, then renamed; after it its index, which says that it is whole. tick: after each image."""
        beside = self.out / f".{job.name}.{secrets.token_hex(4)}.writing"
        try:
            with beside.open("wb") as stream:
                index = self._fill(stream, job, tick)
            os.replace(beside, self.out / f"{job.name}.tar")
            write_index(beside, *index)
            os.replace(beside, self.out / f"{job.name}.npz")
        finally:
            beside.unlink(missing_ok=True)

    def _fill(self, stream: IO[bytes], job: Job, tick: Callable[[], None]) -> tuple[Any, ...]:
        source, rows, names, left_out = self.sources[job.part], [], [], []
        hashed = _Hashed(stream)
        with tarfile.open(fileobj=hashed, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
            for number in map(int, job.images):
                if self.stop.is_set():
                    raise _StoppedError
                file = os.fsdecode(bytes(source.files[number]))
                label = -1 if source.labels is None else int(source.labels[number])
                try:
                    content, size = packed_image(source.read(number), **self._image_settings)
                except UnreadableImage as error:
                    left_out.append((number, label, file, error.reason))
                else:
                    key = f"{job.number:06d}-{number:09d}"
                    offset = _add(tar, f"{key}.jpg", content)
                    text: dict[str, Any] = {"file": file, "number": number, "width": size[0], "height": size[1]}
                    if label >= 0:
                        text |= {"label": label, "class": source.classes[label]}
                        _add(tar, f"{key}.cls", str(label).encode())
                    _add(tar, f"{key}.json", json.dumps(text).encode())
                    rows.append((number, label, offset, len(content), zlib.crc32(content), *size))
                    names.append(os.fsencode(file))
                with self.done.get_lock():
                    self.done.value += 1
                tick()
        stream.flush()
        os.fsync(stream.fileno())
        return rows, names, left_out, (hashed.length, hashed.state.hexdigest())

    @property
    def _image_settings(self) -> dict[str, int]:
        return {key: self.settings[key] for key in ("short_side", "quality")}


class _Hashed:
    """A file that is only written to, with the checksum and the length of what was written."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.state, self.length = stream, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self.state.update(content)
        self.length += len(content)
        return self.stream.write(content)

    def tell(self) -> int:
        return self.length


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """The offset of the content in the tar. tarfile's own defaults are no time, no owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + BLOCK
    tar.addfile(member, io.BytesIO(content))
    return offset


def packed_image(content: bytes, short_side: int, quality: int) -> tuple[bytes, tuple[int, int]]:
    """The file as it is packed, and its (width, height) in pixels.

    The same bytes where nothing has to change: a JPEG, RGB or grey, upright, not larger. Else 8-bit RGB as
    `open_image` has it, resized with antialias (bicubic) so that the short side is `short_side`, as a 4:2:0 JPEG.

    Raises:
        UnreadableImage: with the reason.
    """
    image = open_image(io.BytesIO(content))
    shortest = min(image.size)
    if 0 < short_side < shortest:
        width, height = (max(short_side, round(side * short_side / shortest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    elif _is_plain(content):
        return content, image.size
    if max(image.size) > _LONGEST:
        raise UnreadableImage(f"a side of {max(image.size)} px; a JPEG has {_LONGEST} at most")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", comment=b"")
    return stream.getvalue(), image.size


def _is_plain(content: bytes) -> bool:
    with Image.open(io.BytesIO(content)) as image:
        if image.format != "JPEG" or image.mode not in ("RGB", "L"):
            return False
        try:
            orientation = image.getexif().get(_ORIENTATION, 1)
        except Exception:
            # as `open_image` has it: a damaged EXIF block turns nothing
            return True
        return orientation not in range(2, 9)
