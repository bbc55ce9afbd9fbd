"""A source of packed images: each is read from its tar by its offset. `format.py` describes the form."""

import io
import os
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from equimid.data.decode import open_image
from equimid.data.shards.format import Pack, Part, Records, read_index, shard_name
from equimid.data.sources import Indices, Source, digest, holdout_part_of_files, length_and_time
from equimid.errors import UnreadableImage, UserError

__all__ = ["ShardSource", "open_shards"]

# of an image: its shard, its row of that shard's index, and what the index says of it
_PLACE = np.dtype(
    [
        *(("shard", "<i4"), ("row", "<i4"), ("offset", "<i8"), ("size", "<i4"), ("crc", "<u4")),
        *(("width", "<i4"), ("height", "<i4")),
    ]
)


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardSource(Source):
    """Images in shards, numbered as the folder that was packed: the same splits, the same order of an epoch.

    Attributes:
        root: folder of the shards.
        shards: their names, without suffix.
        lengths: (shards,) bytes of each tar.
        identity: hash of all bytes in all shards.
        places: (n,) of _PLACE: which shard, which row of its index; offset and size in bytes, CRC-32, width, height.
    """

    root: Path
    shards: tuple[str, ...]
    lengths: Indices
    identity: str
    places: Records

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shard(self) -> npt.NDArray[np.int32]:
        """(n,) which shard each image lies in."""
        shard: npt.NDArray[np.int32] = self.places["shard"]
        return shard

    def load(self, i: int) -> Image.Image:
        return open_image(io.BytesIO(self.read(i)))

    def read(self, i: int) -> bytes:
        place = self.places[i]
        name = f"{self.shards[place['shard']]}.tar"
        size = int(place["size"])
        try:
            content = _open_shard(str(self.root / name)).read(int(place["offset"]), size)
        except FileNotFoundError:
            raise UnreadableImage(f"{name} is missing") from None
        except OSError as error:
            _open_shard.cache_clear()
            raise UnreadableImage(f"{name} cannot be read ({error.strerror})") from None
        if len(content) < size:
            _open_shard.cache_clear()  # the file may be replaced by a whole one: the next read opens it anew
            raise UnreadableImage(f"{name} is truncated")
        if zlib.crc32(content) != place["crc"]:
            raise UnreadableImage(f"{name} is damaged: these are not the bytes that were packed")
        return content

    def size(self, i: int) -> tuple[int, int]:
        """(width, height) in pixels, from the index."""
        return int(self.places["width"][i]), int(self.places["height"][i])

    def describe(self, i: int) -> str:
        place = self.places[i]
        shard = self.root / self.shards[place["shard"]]
        try:
            file = os.fsdecode(bytes(_names(shard.with_suffix(".npz"))[place["row"]]))
        except UserError:  # the index went where the shard went
            file = f"image {place['row']}"
        return f"{shard}.tar: {file}"

    def fingerprint(self) -> str:
        """Of the shards' checksums, the images taken and the labels. No shard is read, so a resumed run has the same
        order of images when one is lost."""
        return digest(self.identity, self.places, self.labels, *self.classes)

    def stamp(self) -> str:
        """Also of the shards as they lie there now: what was computed while one was gone is not for when it is back."""
        used = np.unique(self.shard)
        states = [length_and_time(self.root / f"{self.shards[k]}.tar") for k in used.tolist()]
        return digest(self.fingerprint(), used, np.array(states, dtype=np.int64), str(self.root.resolve()))

    def take(self, indices: Indices) -> Self:
        return replace(self, places=self.places[indices], labels=self._labels_at(indices))

    def faults(self) -> dict[int, str]:
        """Reasons by image, ascending: its shard is missing, cut before its end, or of another length than recorded.

        One stat per shard; nothing is read.
        """
        lengths = np.array([length_and_time(self.root / f"{name}.tar")[0] for name in self.shards], dtype=np.int64)
        length, shard = lengths[self.shard], self.shard
        ends = self.places["offset"] + self.places["size"]
        bad = np.flatnonzero((length < ends) | (length > self.lengths[shard]))
        return {int(i): self._fault(int(shard[i]), int(length[i])) for i in bad}

    def smaller_than(self, side: int) -> list[int]:
        """Images of which a side is below `side` px, ascending."""
        small: list[int] = np.flatnonzero(np.minimum(self.places["width"], self.places["height"]) < side).tolist()
        return small

    def _fault(self, shard: int, length: int) -> str:
        name, expected = f"{self.shards[shard]}.tar", int(self.lengths[shard])
        if length < 0:
            return f"{name} is missing"
        if length < expected:
            return f"{name} is truncated: {length} of {expected} bytes"
        return f"{name} is not what was packed: {length} bytes, expected {expected}"


def open_shards(data: str, folder: Path, split: str | None) -> ShardSource:
    """Open a packed folder, with the splits that `open_source` gives of the folder that was packed.

    A missing shard is no error here: `check_images` reports it.

    Raises:
        UserError: packing has not ended, or an index is missing or damaged.
    """
    if not (folder / "pack.json").exists():
        begun = Pack.load(folder / "packing.json")
        names = [shard_name(part, k) for part, count in begun.planned.items() for k in range(count)]
        whole = sum((folder / f"{name}.npz").exists() for name in names)
        raise UserError(
            f"{folder} is not packed wholly ({whole} of {len(names)} shards); run again: "
            f"{begun.command(folder)} and it continues where it was stopped"
        )
    pack = Pack.load(folder / "pack.json")
    if "all" not in pack.parts:
        return _read_part(data, folder, pack, "test" if split in ("test", "whole") else "train", split or "train")[0]
    source, numbers, labels = _read_part(data, folder, pack, "all", "all")
    if split in (None, "whole", "fit"):
        return source
    # of all that were listed, so that the parts are those of the folder or list, whatever was left out
    part = holdout_part_of_files(labels, _listed_files(folder, pack.parts["all"]), split)
    chosen = np.isin(numbers, part)
    return replace(source, split=split or "").take(np.flatnonzero(chosen))


def _read_part(
    data: str, folder: Path, pack: Pack, name: str, split: str
) -> tuple[ShardSource, Indices, npt.NDArray[np.int64]]:
    """A part's images in the order of their numbers, these numbers, and the labels of all that were listed."""
    part = pack.parts[name]
    places, numbers = [], []
    labels = np.zeros(part.listed, dtype=np.int64)
    for k, shard in enumerate(part.shards):
        index = read_index(folder / f"{shard.name}.npz")
        images, left_out = index["images"], index["left_out"]
        if len(images) != shard.images or bytes(index["tar"]["sha256"]).decode() != shard.sha256:
            raise UserError(
                f"the index {folder / shard.name}.npz belongs to another shard than pack.json tells of; bring the "
                "right one back, or pack the images again into a new folder"
            )
        here = np.zeros(len(images), dtype=_PLACE)
        here["shard"], here["row"] = k, np.arange(len(images))
        for column in ("offset", "size", "crc", "width", "height"):
            here[column] = images[column]
        labels[images["number"]], labels[left_out["number"]] = images["label"], left_out["label"]
        places.append(here)
        numbers.append(images["number"])
    order = np.argsort(np.concatenate(numbers), kind="stable")
    packed = np.concatenate(numbers)[order].astype(np.int64)
    source = ShardSource(
        name=data,
        split=split,
        labels=labels[packed] if pack.classes else None,
        classes=pack.classes,
        root=folder,
        shards=tuple(shard.name for shard in part.shards),
        lengths=np.array([shard.bytes for shard in part.shards], dtype=np.int64),
        identity=digest(*(shard.sha256 for shard in part.shards)),
        places=np.concatenate(places)[order],
    )
    return source, packed, labels


def _listed_files(folder: Path, part: Part) -> npt.NDArray[np.bytes_]:
    """(listed,) the file of every line or image that was packed or left out, by its number."""
    files, numbers = [], []
    for shard in part.shards:
        index = read_index(folder / f"{shard.name}.npz")
        files += [index["names"], index["reasons"][:, 0] if len(index["reasons"]) else index["names"][:0]]
        numbers += [index["images"]["number"], index["left_out"]["number"]]
    listed = np.concatenate(files)
    return listed[np.argsort(np.concatenate(numbers), kind="stable")]


@lru_cache(maxsize=256)
def _names(file: Path) -> npt.NDArray[np.bytes_]:
    return read_index(file)["names"]  # type: ignore[return-value]


class _OpenShard:
    """A file to read from at any place; closed when nobody reads from it any more."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes, or fewer where the file ends."""
        parts = []
        while size > 0 and (part := os.pread(self.descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


# those used last; `pread` keeps no place, so threads and forked processes share them
_open_shard = lru_cache(maxsize=128)(_OpenShard)
