"""Sources: numbered images, with labels where there are any. Frozen and picklable, for data workers."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from equimid.data.decode import open_image, read_size, reasons
from equimid.errors import UserError

__all__ = [
    "ArraySource",
    "FileSource",
    "Source",
    "TorchvisionSource",
    "digest",
    "holdout",
    "holdout_part",
    "holdout_part_of_files",
    "length_and_time",
    "pack_paths",
]

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Source(ABC):
    """n numbered images.

    Attributes:
        name: what the user typed.
        split: "train", "test", "train+unlabelled" or "all".
        labels: (n,) int64 indices into classes, or None.
        classes: names of the classes, () without labels.
    """

    name: str
    split: str
    labels: Indices | None = None
    classes: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, i: int) -> Image.Image:
        """Decode image i to RGB.

        Raises:
            UnreadableImage: with the reason.
        """

    def read(self, i: int) -> bytes | None:
        """The encoded file of image i; None where the images are kept as pixels. Raises as `load`."""
        return None

    @abstractmethod
    def size(self, i: int) -> tuple[int, int]:
        """(width, height) in pixels, from the header where there is one. Raises as `load`."""

    @abstractmethod
    def describe(self, i: int) -> str:
        """Say where a person finds image i: a path, or "digits[17]"."""

    @abstractmethod
    def fingerprint(self) -> str:
        """32 hex digits that change when the data change. No file is read."""

    def stamp(self) -> str:
        """Hash of the fingerprint and of whatever else shows that a file was rewritten. It is the key of results that
        are computed from the images and kept."""
        return self.fingerprint()

    @abstractmethod
    def take(self, indices: Indices) -> Self:
        """The images at these indices, in this order."""

    def without(self, indices: Iterable[int]) -> Self:
        """All images but these, in order."""
        return self.take(np.delete(np.arange(len(self)), np.fromiter(indices, dtype=np.int64)))

    def _labels_at(self, indices: Indices) -> Indices | None:
        return None if self.labels is None else self.labels[indices]


@dataclass(frozen=True, eq=False, kw_only=True)
class FileSource(Source):
    """Image files.

    Attributes:
        root: folder that relative paths start from.
        files: (n,) paths as bytes, relative to root or absolute; from `pack_paths`.
    """

    root: Path
    files: npt.NDArray[np.bytes_]

    def __len__(self) -> int:
        return len(self.files)

    def path(self, i: int) -> Path:
        return self.root / os.fsdecode(bytes(self.files[i]))

    def load(self, i: int) -> Image.Image:
        return open_image(self.path(i))

    def read(self, i: int) -> bytes:
        path = self.path(i)
        with reasons(path):
            return path.read_bytes()

    def size(self, i: int) -> tuple[int, int]:
        return read_size(self.path(i))

    def describe(self, i: int) -> str:
        return str(self.path(i))

    def fingerprint(self) -> str:
        """Hash of paths, sizes in bytes and labels; a moved folder keeps it. Only the size of a file is read, so a file
        that is rewritten to the same size is not noticed."""
        sizes = np.array([length_and_time(self.path(i))[0] for i in range(len(self))], dtype=np.int64)
        return digest(b"\0".join(self.files.tolist()), sizes, self.labels, *self.classes)

    def stamp(self) -> str:
        times = np.array([length_and_time(self.path(i))[1] for i in range(len(self))], dtype=np.int64)
        return digest(self.fingerprint(), times, str(self.root.resolve()))

    def take(self, indices: Indices) -> Self:
        return replace(self, files=self.files[indices], labels=self._labels_at(indices))


@dataclass(frozen=True, eq=False, kw_only=True)
class ArraySource(Source):
    """Images in memory.

    Attributes:
        images: (n, h, w) or (n, h, w, 3), uint8.
        numbers: (n,) places in the data set that they were taken from.
    """

    images: npt.NDArray[np.uint8]
    numbers: Indices

    def __len__(self) -> int:
        return len(self.images)

    def load(self, i: int) -> Image.Image:
        return Image.fromarray(self.images[i]).convert("RGB")

    def size(self, i: int) -> tuple[int, int]:
        height, width = self.images.shape[1:3]
        return width, height

    def describe(self, i: int) -> str:
        return f"{self.name}[{self.numbers[i]}]"

    def fingerprint(self) -> str:
        """Hash of pixels and labels."""
        return digest(self.images, self.labels, *self.classes)

    def take(self, indices: Indices) -> Self:
        return replace(
            self,
            images=self.images[indices],
            numbers=self.numbers[indices],
            labels=self._labels_at(indices),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class TorchvisionSource(Source):
    """Images of a torchvision data set.

    Attributes:
        dataset: dataset[k] is (PIL image, target).
        numbers: (n,) the k of each image.
    """

    dataset: Sequence[Any]
    numbers: Indices

    def __len__(self) -> int:
        return len(self.numbers)

    def load(self, i: int) -> Image.Image:
        with reasons():
            image: Image.Image = self.dataset[int(self.numbers[i])][0]
            return image.convert("RGB")

    def size(self, i: int) -> tuple[int, int]:
        return self.load(i).size

    def describe(self, i: int) -> str:
        return f"{self.name}[{self.numbers[i]}]"

    def fingerprint(self) -> str:
        """Hash of name, numbers and labels: the pixels of a published data set do not change."""
        return digest(self.name, self.split, self.numbers, self.labels, *self.classes)

    def take(self, indices: Indices) -> Self:
        return replace(self, numbers=self.numbers[indices], labels=self._labels_at(indices))


def pack_paths(paths: Iterable[str]) -> npt.NDArray[np.bytes_]:
    """Paths as one array (n,) of bytes. It takes a fifth of the memory of a list of str, and data workers share it."""
    return np.array([os.fsencode(p) for p in paths], dtype=np.bytes_)


def length_and_time(path: Path) -> tuple[int, int]:
    """Bytes of a file and time of its last change in ns; -1 where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def digest(*parts: str | bytes | npt.NDArray[Any] | None) -> str:
    """Hash of the parts, their types and their lengths, as 32 hex digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).data)
        else:
            content = part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace")
            state.update(f"{len(content)}:".encode() + content)
    return state.hexdigest()


def holdout(labels: npt.NDArray[Any], fraction: float | int, seed: int) -> tuple[Indices, Indices]:
    """Split images in two, with the classes in proportion.

    A class of a single image stays in the first part; of every other class at least one image is in the second.

    Args:
        labels: (n,) of the images.
        fraction: of the second part, in (0, 0.5], or its number of images.

    Returns:
        Indices of the first and of the second part, ascending.

    Raises:
        UserError: no class has two images.
    """
    # here, so that data workers do not load it
    from sklearn.model_selection import train_test_split

    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    single = np.flatnonzero(counts[inverse] < 2)
    several = np.flatnonzero(counts[inverse] >= 2)
    if several.size == 0:
        raise UserError(
            f"{len(labels)} images in {len(classes)} classes cannot be split into two parts: "
            "expected at least two images of one class; give more images"
        )
    held_count = fraction if isinstance(fraction, int) else math.ceil(fraction * len(several))
    fit, held = train_test_split(
        several,
        test_size=max(held_count, int((counts >= 2).sum())),
        random_state=seed,
        stratify=inverse[several],
    )
    return np.sort(np.concatenate([fit, single])), np.sort(held)


def holdout_part(labels: npt.NDArray[Any], split: str | None, fraction: float | int = 0.2) -> Indices:
    """Indices of "test" or else of "train" where a data set has no published split: stratified, seed 0."""
    train, test = holdout(labels, fraction, seed=0)
    return test if split == "test" else train


def holdout_part_of_files(labels: npt.NDArray[Any], files: npt.NDArray[Any], split: str | None) -> Indices:
    """As `holdout_part`, of lines (n,) that may name a file (n,) several times: all lines of a file lie in one part."""
    _, first, file = np.unique(files, return_index=True, return_inverse=True)
    if len(first) == len(files):
        return holdout_part(labels, split)
    return np.flatnonzero(np.isin(file, holdout_part(labels[first], split)))
