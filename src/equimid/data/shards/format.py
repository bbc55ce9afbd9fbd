"""The format of packed data: what `pack` writes and `ShardSource` reads.

OUT/pack.json           what was packed and how; the shards with their lengths and checksums. Written last
    shard-000000.tar    WebDataset: KEY.jpg, KEY.json and, with labels, KEY.cls for each image
    shard-000000.npz    its index: where each image lies, so that it is read without a scan
    unreadable.csv      what was left out, and why

Of data in train and test folders the shards are called train-000000 and test-000000.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from equimid.errors import UserError
from equimid.files import write_json

__all__ = ["Pack", "Part", "Records", "Shard", "as_options", "is_packed", "read_index", "shard_name", "write_index"]

Records = npt.NDArray[np.void]

# of a shard's images: their place in the listing that was packed, and in the tar; crc is zlib's CRC-32 of the file
_IMAGE = [
    *(("number", "<i8"), ("label", "<i8"), ("offset", "<i8"), ("size", "<i4"), ("crc", "<u4")),
    *(("width", "<i4"), ("height", "<i4")),
]
_TAR = [("bytes", "<i8"), ("sha256", "S64")]
_LEFT_OUT = [("number", "<i8"), ("label", "<i8")]
_FORMAT, _VERSION = "equimid pack", 1


@dataclass(frozen=True)
class Shard:
    """One shard.

    Attributes:
        name: without suffix.
        images: how many it holds.
        bytes: length of its tar.
        sha256: of its tar.
    """

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """The images of one split.

    Attributes:
        listed: how many were to be packed, unreadable ones too.
        shards: those that hold the readable ones.
    """

    listed: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Pack:
    """The content of `pack.json`.

    Attributes:
        data: what was packed, as typed.
        fingerprint: of the data.
        settings: short_side in px (0: none), quality 1..95, shard_bytes.
        classes: names, () without labels.
        planned: number of shards of each part: "all", or "train" and "test".
        parts: the same parts, packed; {} while packing is not done.
    """

    data: str
    fingerprint: str
    settings: dict[str, int]
    classes: tuple[str, ...]
    planned: dict[str, int]
    parts: dict[str, Part]

    def command(self, out: Path) -> str:
        """What a user types to resume it."""
        return f"equimid pack {self.data} {out} {' '.join(f'{k} {v}' for k, v in as_options(self.settings).items())}"

    def save(self, folder: Path) -> None:
        """`pack.json`, or `packing.json` while it is not done; written beside and renamed."""
        file = folder / ("pack.json" if self.parts else "packing.json")
        write_json(file, {"format": _FORMAT, "version": _VERSION, **asdict(self)})

    @classmethod
    def load(cls, file: Path) -> Self:
        """
        Raises:
            UserError: damaged, or of another version.
        """
        try:
            content = json.loads(file.read_text())
            if content.pop("format") != _FORMAT or content.pop("version") != _VERSION:
                raise ValueError("of another version")
            parts = {
                name: Part(part["listed"], tuple(Shard(**shard) for shard in part["shards"]))
                for name, part in content.pop("parts").items()
            }
            return cls(**{**content, "classes": tuple(content["classes"])}, parts=parts)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{file} cannot be used ({error}); expected what equimid pack writes: bring it back, or pack the "
                "images again into a new folder"
            ) from None


def as_options(settings: Mapping[str, int]) -> dict[str, str]:
    """Settings of a pack as the command line spells them."""
    return {
        "--short-side": str(settings["short_side"]),
        "--quality": str(settings["quality"]),
        "--shard-mib": f"{settings['shard_bytes'] / 2**20:.10g}",
    }


def is_packed(folder: Path) -> bool:
    """Whether `equimid pack` wrote, or has begun to write, into this folder."""
    return any(_begins_as_ours(folder / name) for name in ("pack.json", "packing.json"))


def _begins_as_ours(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return _FORMAT.encode() in stream.read(100)
    except OSError:
        return False


def shard_name(part: str, k: int) -> str:
    """Name of the k-th shard of a part, without suffix."""
    return f"{'shard' if part == 'all' else part}-{k:06d}"


def write_index(
    file: Path,
    images: Sequence[tuple[int, ...]],
    names: Sequence[bytes],
    left_out: Sequence[tuple[int, int, str, str]],
    tar: tuple[int, str],
) -> None:
    """Write the index of a shard. Its bytes depend on its content only: numpy dates the members of an .npz 1980.

    Args:
        images: rows of _IMAGE.
        names: files of these images.
        left_out: (number, label, file, reason) of each unreadable image.
        tar: its length in bytes and its SHA-256.
    """
    with file.open("wb") as stream:
        np.savez(
            stream,
            allow_pickle=False,
            images=np.array(images, dtype=_IMAGE),
            names=np.array(names, dtype=np.bytes_),
            left_out=np.array([row[:2] for row in left_out], dtype=_LEFT_OUT),
            reasons=np.array([[os.fsencode(text) for text in row[2:]] for row in left_out], dtype=np.bytes_),
            tar=np.array(tar, dtype=_TAR),
        )


def read_index(file: Path) -> dict[str, Records]:
    """
    Raises:
        UserError: missing or damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            index = {name: content[name] for name in ("images", "names", "left_out", "reasons", "tar")}
        if index["images"].dtype != np.dtype(_IMAGE) or len(index["names"]) != len(index["images"]):
            raise ValueError("of another form")
        return index
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(
            f"the index {file} cannot be used ({reason}); bring it back, or run the same equimid pack again, which "
            "makes what is missing"
        ) from None
