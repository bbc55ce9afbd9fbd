"""Published sets of ImageNet's classes as they lie on disk, and what a classifier says of their images."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from equimid.data import IMAGE_SUFFIXES, FileSource, Source, open_source
from equimid.data.sources import pack_paths
from equimid.distributed import gather_in_order, rank, world_size
from equimid.errors import UserError
from equimid.evaluation.preprocessing import Preprocessing, image_batches
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.linear import Classifier
from equimid.evaluation.study import Scope, readable
from equimid.records import Record

__all__ = [
    "ClassFolders",
    "first_names",
    "full_crop",
    "named_folders",
    "predict",
    "predict_among",
    "set_folder",
    "subfolders",
    "summary",
    "training_images",
]

logger = logging.getLogger("equimid")


def training_images(train: str | None, title: str) -> Source:
    """The labelled images that the classifier is trained on.

    Raises:
        UserError: none are named, or they have no labels.
    """
    if train is None:
        raise UserError(
            f"{title} has test images only: give labelled training images of the same classes with --train, a folder "
            "with a folder for each class (n01440764, ...)"
        )
    source = open_source(train, "fit")
    if source.labels is None:
        raise UserError(f"{train} has no labels; --train must be a folder with a folder for each class")
    return readable(source)


def set_folder(data: str) -> Path:
    """
    Raises:
        UserError: it is no folder.
    """
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"{data} is {'a file' if root.exists() else 'not there'}; expected the folder of the set")
    return root


def subfolders(folder: Path) -> list[Path]:
    """Sorted; what starts with a dot is left out."""
    return [folder / entry.name for entry in _entries(folder) if entry.is_dir()]


def named_folders(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """The folders of these names in root or in the groups in it (noise, blur, ...), in the order of `names`.

    Raises:
        UserError: a name lies there twice.
    """
    by_name: dict[str, Path] = {}
    order = dict.fromkeys(names)
    level = subfolders(root)
    groups = [folder for folder in level if folder.name not in order]
    for folder in [*level, *(below for group in groups for below in subfolders(group))]:
        if folder.name not in order:
            continue
        if folder.name in by_name:
            raise UserError(f"{by_name[folder.name]} and {folder} are both there; expected one of them: move one away")
        by_name[folder.name] = folder
    return {name: by_name[name] for name in order if name in by_name}


def first_names(names: Iterable[str], count: int = 5) -> str:
    """The first few, for a message."""
    every = list(names)
    return ", ".join(every[:count]) + (f" and {len(every) - count} more" if len(every) > count else "")


@dataclass(frozen=True)
class ClassFolders:
    """A folder of each class.

    Attributes:
        root:   folder that the class folders lie in
        labels: index of the class of each of them, by name
    """

    root: Path
    labels: Mapping[str, int]

    @staticmethod
    def find(root: Path, classes: tuple[str, ...], numbered: bool = False) -> "ClassFolders":
        """Folders of `classes` in root; with `numbered` also 0 to 999, the place of a wnid among the sorted 1000.

        Raises:
            UserError: a folder is of no class that the classifier knows.
        """
        names = [folder.name for folder in subfolders(root)]
        index = {name: number for number, name in enumerate(classes)}
        # int() reads other digits than these too
        numbers = all(name.isascii() and name.isdigit() for name in names)
        if numbered and names and numbers and not set(names) <= set(index):
            if len(classes) != 1000:
                raise UserError(
                    f"{root} has numbered folders, places among the 1000 classes of ImageNet in order of wnid, and the "
                    f"training images have {len(classes)} classes; give those of ImageNet with --train, or rename the "
                    "folders to wnids"
                )
            places = {str(place): index[name] for place, name in enumerate(sorted(classes))}
            index |= {name: places[str(int(name))] for name in names if str(int(name)) in places}
        unknown = [name for name in names if name not in index]
        if unknown:
            raise UserError(
                f"the classifier does not know {len(unknown)} of the {len(names)} class folders in {root}: "
                f"{first_names(unknown)}; expected names of the training images' folders, such as "
                f"{first_names(classes, 2)}: check the path, or train on images of these classes"
            )
        return ClassFolders(root, {name: index[name] for name in names})

    def images(self, name: str) -> FileSource:
        """Their images, labelled; maybe none."""
        files, labels = [], []
        for folder, label in self.labels.items():
            for entry in _entries(self.root / folder):
                if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                    files.append(f"{folder}/{entry.name}")
                    labels.append(label)
        return FileSource(
            name=name, split="test", root=self.root, files=pack_paths(files), labels=np.array(labels, dtype=np.int64)
        )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder} ({error.strerror}); allow it, or check the path") from None


def full_crop(preprocessing: Preprocessing) -> Preprocessing:
    """For images that were cropped when the set was made: their pixels as they are where the network takes that size,
    else the whole image resized."""
    return Preprocessing(preprocessing.size, 1.0, preprocessing.mean, preprocessing.std)


def predict(classifier: Classifier, source: Source, preprocessing: Preprocessing) -> Tensor:
    """Classes (n,) of the images, -1 where the head has diverged. See `predict_among`."""
    return predict_among(classifier, source, preprocessing, [None])[:, 0]


@torch.inference_mode()
def predict_among(
    classifier: Classifier, source: Source, preprocessing: Preprocessing, among: Sequence[Tensor | None]
) -> Tensor:
    """Classes (n, len(among)) of the images, -1 where the head has diverged: a column among the classes (k,) of each
    entry alone, None for all. The images pass the network once.

    Each rank takes its share, and all get the whole.

    Raises:
        UserError: an image cannot be read; it is named.
    """
    study = classifier.study
    mine = np.arange(rank(), len(source), world_size())
    parts = [torch.zeros(0, len(among), dtype=torch.int64)]
    for images in image_batches(source, preprocessing, workers=study.workers, indices=mine):
        logits = classifier.logits(images)
        columns = (logits if allowed is None else only(logits, allowed) for allowed in among)
        parts.append(torch.stack([predicted(column) for column in columns], dim=1))
    return gather_in_order(torch.cat(parts), torch.from_numpy(mine), study.device)


def only(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits (n, C) with all but the classes `allowed` (k,) at -inf."""
    masked = torch.full_like(logits, -torch.inf)
    masked[:, allowed] = logits[:, allowed]
    return masked


def summary(
    scope: Scope, evaluation: str, metric: str, value: float, n: int, details: dict[str, object], unit: str = "%"
) -> Record:
    """A value that is computed of others, so without an interval."""
    return scope.record(evaluation, metric, value, n, unit=unit, details=details)
