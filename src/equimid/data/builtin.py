"""Data sets that are known by name: `digits` comes with scikit-learn, those of torchvision are downloaded."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from equimid.data.sources import ArraySource, Indices, Source, TorchvisionSource, holdout_part
from equimid.errors import UserError

__all__ = ["NAMED", "data_home", "open_digits", "open_torchvision"]


def data_home() -> Path:
    """The folder of downloads: $EQUIMID_DATA, or ~/.cache/equimid."""
    return Path(os.environ.get("EQUIMID_DATA") or "~/.cache/equimid").expanduser()


def open_digits(name: str, split: str | None) -> Source:
    """Open scikit-learn's 8 x 8 digits, grey 0..16 scaled to 0..255: 1437 to train, 360 to test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int64)
    whole = ArraySource(
        name=name,
        split=split or "train",
        labels=labels,
        classes=tuple(map(str, range(10))),
        images=images,
        numbers=np.arange(len(images)),
    )
    return whole.take(holdout_part(labels, split, 360))


Options = dict[str, Any]


@dataclass(frozen=True)
class _Published:
    """A class of torchvision.datasets.

    Attributes:
        kind: name of the class.
        labels: gives the labels of an instance.
        train: options of the instances that make up the split.
        test: the same; () = 80/20 of train, stratified, seed 0.
        unlabelled: options of the instance to pretrain on, where it is more than train.
    """

    kind: str
    labels: Callable[[Any], Any]
    train: tuple[Options, ...]
    test: tuple[Options, ...] = ()
    unlabelled: Options | None = None


def _split(*names: str) -> tuple[Options, ...]:
    return tuple({"split": name} for name in names)


def _sample_labels(dataset: Any) -> list[int]:
    return [label for _, label in dataset._samples]


_TRAIN, _TEST = ({"train": True},), ({"train": False},)
_targets, _labels, _hidden = attrgetter("targets"), attrgetter("labels"), attrgetter("_labels")
_TABLE = {
    "cifar10": _Published("CIFAR10", _targets, _TRAIN, _TEST),
    "cifar100": _Published("CIFAR100", _targets, _TRAIN, _TEST),
    "dtd": _Published("DTD", _hidden, _split("train", "val"), _split("test")),
    "eurosat": _Published("EuroSAT", _targets, ({},)),
    "fashionmnist": _Published("FashionMNIST", _targets, _TRAIN, _TEST),
    "flowers102": _Published("Flowers102", _hidden, _split("train", "val"), _split("test")),
    "imagenette": _Published("Imagenette", _sample_labels, _split("train"), _split("val")),
    "mnist": _Published("MNIST", _targets, _TRAIN, _TEST),
    "pets": _Published("OxfordIIITPet", _hidden, _split("trainval"), _split("test")),
    "stl10": _Published("STL10", _labels, _split("train"), _split("test"), {"split": "train+unlabeled"}),
    "svhn": _Published("SVHN", _labels, _split("train"), _split("test")),
}


def open_torchvision(name: str, split: str | None) -> Source:
    """Open a split of a published data set, which is downloaded to `data_home()` at first use.

    Raises:
        UserError: it is not there and cannot be downloaded.
    """
    from torch.utils.data import ConcatDataset

    entry = _TABLE[name]
    if split is None and entry.unlabelled is not None:
        (dataset,) = _datasets(name, entry, (entry.unlabelled,))
        return TorchvisionSource(name=name, split="train+unlabelled", dataset=dataset, numbers=np.arange(len(dataset)))
    split = split or "train"
    parts = _datasets(name, entry, entry.test if split == "test" and entry.test else entry.train)
    labels = np.concatenate([np.asarray(entry.labels(part), dtype=np.int64) for part in parts])
    whole: Any = ConcatDataset(parts)
    source = TorchvisionSource(
        name=name,
        split=split,
        labels=labels,
        classes=_class_names(parts[0], labels),
        dataset=whole,
        numbers=np.arange(len(labels)),
    )
    return source if entry.test else source.take(holdout_part(labels, split))


def _class_names(dataset: Any, labels: Indices) -> tuple[str, ...]:
    names = getattr(dataset, "classes", None) or map(str, range(int(labels.max()) + 1))
    # imagenette has several names for a class
    return tuple(n[0] if isinstance(n, tuple) else n for n in names)


def _datasets(name: str, entry: _Published, options: tuple[Options, ...]) -> list[Any]:
    import torchvision.datasets

    kind = getattr(torchvision.datasets, entry.kind)
    folder = data_home() / name
    if not folder.exists():
        _download(folder, kind, (*entry.train, *entry.test))
    try:
        return [kind(str(folder), download=False, **each) for each in options]
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{folder} does not hold torchvision's {entry.kind} as it is published ({_line(error)}); "
            "delete that folder to download it again"
        ) from error


def _download(folder: Path, kind: Any, options: tuple[Options, ...]) -> None:
    from filelock import FileLock

    beside = folder.with_suffix(".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # several processes of a run ask at once: one downloads
        with FileLock(folder.with_suffix(".lock")):
            if folder.exists():
                return
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for each in options:
                kind(str(beside), download=True, **each)
            os.replace(beside, folder)
    except (OSError, RuntimeError, HTTPException) as error:
        is_here = Path(folder.name).is_dir()
        raise UserError(
            f"data set '{folder.name}' is not in {folder} and could not be downloaded ({_line(error)}); "
            f"expected a network or the files: download torchvision.datasets.{kind.__name__} elsewhere "
            f"and put its files into {folder}, or give a folder of images"
            + (f"; to read the folder {folder.name} that is here, write ./{folder.name}" if is_here else "")
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# name -> how to open it, given the split
NAMED: dict[str, Callable[[str | None], Source]] = {
    "digits": partial(open_digits, "digits"),
    **{name: partial(open_torchvision, name) for name in _TABLE},
}
