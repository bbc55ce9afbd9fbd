"""One shard written: its images decoded, made smaller, encoded, put into a tar; and its index."""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from equimid.data.decode import open_image
from equimid.data.jpeg import plain_header
from equimid.data.shards.format import write_index
from equimid.data.sources import FileSource, Indices
from equimid.errors import UnreadableImage
from equimid.files import atomic_write

__all__ = ["BLOCK", "PackedImage", "PlannedShard", "packed_image", "write_shard"]

BLOCK = 512  # bytes; what a tar is made of
_LONGEST = 65_535  # px of a side that a JPEG can have

PackedImage = tuple[bytes, tuple[int, int]]  # a JPEG file and its (width, height) in px


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written.

    Attributes:
        number: its place among those of its part, from 0.
        name: without suffix.
        part: "all", "train" or "test".
        source: the images of the part.
        images: (n,) indices into `source`, in the order of the shard.
    """

    number: int
    name: str
    part: str
    source: FileSource
    images: Indices


def write_shard(out: Path, shard: PlannedShard, packed: Iterator[PackedImage | UnreadableImage]) -> None:
    """Write a tar, then its index, which says that the tar is whole. The bytes are a function of the images.

    The tar is tarfile's and not `webdataset.TarWriter`'s, which says neither where a member begins nor a fixed time.

    Args:
        packed: yields what became of each image of the shard; no more than these are taken.
    """
    source, rows, names, left_out = shard.source, [], [], []
    with atomic_write(out / f"{shard.name}.tar") as beside:
        with tarfile.open(beside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, image in zip(shard.images.tolist(), packed, strict=False):
                file = os.fsdecode(bytes(source.files[number]))
                label = -1 if source.labels is None else int(source.labels[number])
                if isinstance(image, UnreadableImage):
                    left_out.append((number, label, file, image.reason))
                    continue
                content, (width, height) = image
                key = f"{shard.number:06d}-{number:09d}"
                offset = _add(tar, f"{key}.jpg", content)
                text: dict[str, Any] = {"file": file, "number": number, "width": width, "height": height}
                if label >= 0:
                    text |= {"label": label, "class": source.classes[label]}
                    _add(tar, f"{key}.cls", str(label).encode())
                _add(tar, f"{key}.json", json.dumps(text).encode())
                rows.append((number, label, offset, len(content), zlib.crc32(content), width, height))
                names.append(os.fsencode(file))
        with beside.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        length = beside.stat().st_size
    with atomic_write(out / f"{shard.name}.npz") as beside:
        write_index(beside, rows, names, left_out, (length, checksum))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """The offset of the content in the tar. tarfile's own defaults are no time, no owner."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    offset = tar.offset + BLOCK
    tar.addfile(member, io.BytesIO(content))
    return offset


def packed_image(content: bytes, short_side: int, quality: int) -> PackedImage:
    """The file as it is packed, and its (width, height) in px.

    The same bytes where nothing has to change: a JPEG, RGB or grey, upright, not larger. Else 8-bit RGB as
    `open_image` has it, resized with antialias (bicubic) so that the short side is `short_side` px, as a 4:2:0 JPEG.

    Raises:
        UnreadableImage: with the reason.
    """
    image = open_image(io.BytesIO(content))
    shortest = min(image.size)
    if 0 < short_side < shortest:
        width, height = (max(short_side, round(side * short_side / shortest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    elif plain_header(content) == (image.size, 1):
        return content, image.size
    if max(image.size) > _LONGEST:
        raise UnreadableImage(f"a side of {max(image.size)} px; a JPEG has {_LONGEST} at most")
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, subsampling="4:2:0", comment=b"")
    return stream.getvalue(), image.size
