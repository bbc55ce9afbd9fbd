"""Open what the user typed for `data`: a known name, a folder of images or of shards, or a text file of paths."""

import difflib
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from equimid.data.builtin import NAMED
from equimid.data.decode import IMAGE_SUFFIXES
from equimid.data.shards.format import is_packed
from equimid.data.shards.source import open_shards
from equimid.data.sources import FileSource, Source, holdout_part, holdout_part_of_files, pack_paths
from equimid.errors import UserError

__all__ = ["KNOWN_NAMES", "check_exists", "open_source"]

KNOWN_NAMES = tuple(NAMED)

logger = logging.getLogger("equimid")

_LIST_SUFFIXES = (".txt", ".lst")
# the first of them that is there is tested on
_TEST_FOLDERS = ("test", "testing", "val", "valid", "validate", "validation", "dev", "eval", "evaluation", "holdout")
_TRAIN_FOLDERS = ("train", "training")
# kinds of images that are not read; whoever has them shall know that they are left out
_OTHER_IMAGES = frozenset(
    f".{suffix}"
    for suffix in (
        *(
            "heic",
            "heif",
            "jxl",
            "svg",
            "psd",
            "xcf",
            "exr",
            "hdr",
            "dcm",
            "dicom",
            "nii",
            "svs",
            "ndpi",
            "mrxs",
            "czi",
        ),
        *("dng", "cr2", "cr3", "nef", "arw", "orf", "raf", "rw2"),
    )
)
# what a run, a measurement of another network and a sweep leave in their folder: a file, and what it says in its lines
_OWN = {"config.yaml": ("method:", "backbone:", "recipe:"), "model.yaml": ("model:", "weights:"),
        "sweep.yaml": ("recipe:", "combinations:", "schema:")}  # fmt: skip


def open_source(data: str, split: str | None = None) -> Source:
    """The images behind a name, a folder or a text file of paths.

    Without a published split or folders of that name, split=None covers the images of "test" too, without labels.

    Args:
        data: "digits", "cifar10", ...; a folder, searched at any depth ("./digits" where it has the name of a data
            set), or one that `equimid pack` wrote; or a .txt or .lst file: a path a line, relative to the file or
            absolute, then perhaps a tab and a label.
        split: None to pretrain: all that is not a test split. "train" and "test" to evaluate: the published split, the
            folders train/ and test/ (or val/, valid/, dev/, ...), or else 80/20 of the images, stratified, seed 0.
            "whole" to test what was trained on other data, and "fit" to train what is tested on other data: the test
            or the training split where there is one, else all.

    Raises:
        UserError: nothing there, no image, an unknown name or split.
    """
    if split not in (None, "train", "test", "whole", "fit"):
        raise UserError(f"unknown split '{split}'; expected 'train', 'test', 'whole', 'fit' or none")
    if data in NAMED:
        return NAMED[data]({"whole": "test", "fit": "train"}.get(split or "", split))
    check_exists(data)
    path = Path(data).expanduser()
    if path.is_dir():
        return open_shards(data, path, split) if is_packed(path) else _open_folder(data, path, split)
    if path.suffix.lower() in _LIST_SUFFIXES:
        return _open_list(data, path, split)
    raise UserError(
        f"{data} is a single file; expected a folder of images or a text file of paths "
        f"({', '.join(_LIST_SUFFIXES)}): give {path.parent} or a list"
    )


def check_exists(data: str) -> None:
    """Refuse what is neither a known name nor an existing path.

    Raises:
        UserError: with the nearest name.
    """
    if data in NAMED or (data and Path(data).expanduser().exists()):
        return
    known = ", ".join(KNOWN_NAMES)
    if os.sep in data or (os.altsep and os.altsep in data):
        raise UserError(f"{data} does not exist; expected a folder of images, a text file of paths, or one of: {known}")
    close = difflib.get_close_matches(data.lower(), KNOWN_NAMES, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    raise UserError(f"'{data}' is neither an existing folder or text file nor one of: {known}{hint}")


@cache
def _say_once(text: str) -> None:
    """A folder is opened several times in a run."""
    logger.warning(text)


def _split(source: FileSource, split: str | None, files: Sequence[str] = ()) -> Source:
    """files: (n,) paths where some may be named several times; all copies of one lie in one part."""
    if split in (None, "whole", "fit"):
        return source
    labels = np.zeros(len(source)) if source.labels is None else source.labels
    part = holdout_part_of_files(labels, np.array(files), split) if files else holdout_part(labels, split)
    return replace(source, split=split).take(part)


# --- folders


def _open_folder(data: str, root: Path, split: str | None) -> Source:
    parts = _train_and_test(root)
    if parts is None:
        files = _image_files(root)
        return _split(_labelled(data, "all", root, files, _class_folders(files)), split)
    chosen, other = parts[::-1] if split in ("test", "whole") else parts
    files = _image_files(chosen)
    classes = _class_folders(files)
    if classes is not None:
        # one numbering for both parts, though a class may be missing in one of them
        classes |= _class_folders(_image_files(other)) or set()
    return _labelled(data, split or "train", chosen, files, classes)


def _labelled(name: str, split: str, root: Path, files: list[str], classes: set[str] | None) -> FileSource:
    if not files:
        raise UserError(
            f"no image found in {root}: expected, at any depth, files that end in "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}; check the path"
        )
    source = FileSource(name=name, split=split, root=root, files=pack_paths(files))
    if classes is None or len(classes) < 2:
        return source
    names = tuple(sorted(classes))
    number = {c: k for k, c in enumerate(names)}
    labels = np.array([number[f.split("/", 1)[0]] for f in files], dtype=np.int64)
    return replace(source, labels=labels, classes=names)


def _train_and_test(root: Path) -> tuple[Path, Path] | None:
    entries = [e for e in _entries(root) if _is_folder(e)]
    folders = {e.name.lower(): root / e.name for e in entries}
    for name in (*_TRAIN_FOLDERS, *_TEST_FOLDERS):
        if name in folders and _is_own(folders[name], {e.name for e in _entries(folders[name])}):
            del folders[name]
    train, test = ([folders[n] for n in names if n in folders] for names in (_TRAIN_FOLDERS, _TEST_FOLDERS))
    if not train or not test:
        return None
    left = sorted(folder.name for folder in folders.values() if folder not in (train[0], test[0]))
    if left:
        _say_once(
            f"{root}: {train[0].name}/ is for training and {test[0].name}/ for testing; not read: "
            f"{', '.join(left[:5])}{f' and {len(left) - 5} more' if len(left) > 5 else ''}"
        )
    return train[0], test[0]


def _class_folders(files: list[str]) -> set[str] | None:
    """The first folders of all paths, or None where an image lies in no folder."""
    return {f.split("/", 1)[0] for f in files} if all("/" in f for f in files) else None


def _image_files(root: Path) -> list[str]:
    """Paths of the image files below root, relative to it with "/", sorted. Names that start with a dot are skipped.

    Links are followed, but not one to a folder that it lies in. A broken link is listed: the check reports it. What
    equimid wrote (runs, measurements, shards) is left out, and so are other kinds of images; a line says so.
    """
    files: list[str] = []
    others: Counter[str] = Counter()
    pending: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while pending:
        below, above = pending.pop()
        status = os.stat(root / below)
        here = (status.st_dev, status.st_ino)
        if here in above:
            continue
        entries = _entries(root / below)
        if below and _is_own(root / below, {entry.name for entry in entries}):
            _say_once(f"{root / below} is not read: equimid wrote it")
            continue
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                pending.append((f"{below}{entry.name}/", above | {here}))
            elif suffix in IMAGE_SUFFIXES and (entry.is_symlink() or entry.is_file()):
                files.append(below + entry.name)
            elif suffix in _OTHER_IMAGES:
                others[suffix] += 1
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        _say_once(f"{root}: {sum(others.values())} files of kinds that are not read: {kinds}; convert them to be used")
    return sorted(files)


def _is_own(folder: Path, names: set[str]) -> bool:
    """Whether equimid wrote this folder, in which these names lie: nothing in it is data."""
    if names & {"pack.json", "packing.json"} and is_packed(folder):
        return True
    for name, keys in _OWN.items():
        if name not in names:
            continue
        try:
            lines = (folder / name).read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            continue
        if all(any(line.startswith(key) for line in lines) for key in keys):
            return True
    return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not e.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"cannot read the folder {folder} ({error.strerror}); allow it, or move that folder away"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


# --- text files


def _open_list(data: str, path: Path, split: str | None) -> Source:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{data} is not UTF-8 text; expected one path a line") from None
    rows = [
        (number, *line.strip().partition("\t")[::2])
        for number, line in enumerate(lines, start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not rows:
        raise UserError(f"no path in {data}: expected one image path a line; add some, or give a folder")
    files = [os.path.expanduser(file.strip()) for _, file, _ in rows]
    source = FileSource(name=data, split="all", root=path.parent, files=pack_paths(files))
    labels = [label.strip() for _, _, label in rows]
    classes = set(labels)
    if "" in classes and len(classes) > 1:
        bare = rows[labels.index("")][0]
        raise UserError(
            f"{data}, line {bare} has no label while other lines have; give all lines a label after a tab, or none"
        )
    copies = files if _has_copies(data, files, labels, labelled=split is not None) else []
    if len(classes) < 2:
        return _split(source, split, copies)
    # "10" after "9"
    names = sorted(classes, key=int) if all(c.isdecimal() for c in classes) else sorted(classes)
    number = {c: k for k, c in enumerate(names)}
    source = replace(source, labels=np.array([number[c] for c in labels], dtype=np.int64), classes=tuple(names))
    return _split(source, split, copies)


def _has_copies(data: str, files: Sequence[str], labels: Sequence[str], labelled: bool) -> bool:
    """Whether a file is named several times.

    Raises:
        UserError: labels count, and a file is named twice with different ones.
    """
    label_of: dict[str, str] = {}
    for file, label in zip(files, labels, strict=True):
        if label_of.setdefault(file, label) != label and labelled:
            raise UserError(
                f"{data} names {file} with the labels {label_of[file]!r} and {label!r}; give each file one label"
            )
    if len(label_of) == len(files):
        return False
    _say_once(
        f"{data}: {len(files)} lines name {len(label_of)} files; in training each line counts, and a split into "
        "training and test images keeps all lines of a file in one part"
    )
    return True
