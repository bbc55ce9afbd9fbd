"""Images with boxes, in the layouts of Pascal VOC and COCO.

VOC:  DATA/Annotations/*.xml, DATA/JPEGImages/*, DATA/ImageSets/Main/{train,val,test}.txt
COCO: DATA/annotations/instances_{train,val}*.json, DATA/{train,val}*/*

Boxes are (x0, y0, x1, y1) in pixels of the image, x to the right and y down, (0, 0) the corner of the first pixel.
"""

import json
import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from equimid.data import IMAGE_SUFFIXES, read_size
from equimid.errors import UnreadableImage, UserError

__all__ = ["DetectionSet", "Split", "detection_splits", "open_detection"]

logger = logging.getLogger("equimid")

Split = Literal["train", "test", "train without val", "val"]
_EXPECTED = (
    "expected Pascal VOC's layout (Annotations/*.xml, JPEGImages/, ImageSets/Main/train.txt and test.txt or val.txt) "
    "or COCO's (annotations/instances_train*.json and instances_val*.json, train*/ and val*/)"
)


@dataclass(frozen=True, eq=False)
class DetectionSet:
    """n images, k boxes in each (a number that differs), C classes.

    Attributes:
        name:    what the user named
        parts:   which lists of images it joins: "train+val"
        images:  n paths
        numbers: n image ids, COCO's or 1 to n
        sizes:   (n, 2) width and height, pixels
        boxes:   n arrays (k, 4) float64, xyxy, within the image and of positive area
        labels:  n arrays (k,) int64, indices into classes
        ignored: n arrays (k,) bool: COCO's crowds and VOC's difficult objects. Nothing is trained on them, and what is
                 found there is neither right nor wrong
        classes: C names
        categories: C category ids, COCO's or 1 to C
        turns, flip: how the files are turned when they are opened (see `turned`); sizes and boxes are those of the
                 turned images
    """

    name: str
    parts: str
    images: tuple[Path, ...]
    numbers: tuple[int, ...]
    sizes: npt.NDArray[np.int64]
    boxes: tuple[npt.NDArray[np.float64], ...]
    labels: tuple[npt.NDArray[np.int64], ...]
    ignored: tuple[npt.NDArray[np.bool_], ...]
    classes: tuple[str, ...]
    categories: tuple[int, ...]
    turns: int = 0
    flip: bool = False

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: npt.NDArray[np.int64]) -> "DetectionSet":
        """The images at these indices, in this order."""
        return replace(
            self,
            images=tuple(self.images[i] for i in indices),
            numbers=tuple(self.numbers[i] for i in indices),
            sizes=self.sizes[indices],
            boxes=tuple(self.boxes[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices),
            ignored=tuple(self.ignored[i] for i in indices),
        )

    def present(self) -> set[str]:
        """Classes of which there is a box that counts."""
        return {self.classes[i] for y, out in zip(self.labels, self.ignored, strict=True) for i in y[~out]}


def detection_splits(
    data: str, train: str | None = None, tested_on: Literal["test", "val"] = "test"
) -> tuple[DetectionSet, DetectionSet]:
    """Training and test images over the same classes.

    Args:
        train: where the training images lie, if elsewhere.
        tested_on: "test": VOC's train and val are trained on and its test is tested on (where it has none: train and
            val); "val": train and val, to choose settings without a look at test. COCO: always train and val.

    Raises:
        UserError: no such data, files that are no annotations, no boxes, or classes that do not agree.
    """
    fit = open_detection(train or data, "train" if tested_on == "test" else "train without val")
    test = open_detection(data, tested_on)
    for part in (fit, test):
        if not part.present():
            raise UserError(f"{part.name} ({part.parts}) has ignored boxes alone (crowds or difficult); give others")
    missing = sorted(test.present() - fit.present())
    if missing:
        names = ", ".join(missing[:5]) + (" and more" if len(missing) > 5 else "")
        raise UserError(
            f"{test.name} ({test.parts}) has boxes of {names}, "
            f"of which {fit.name} ({fit.parts}) has none; give both parts the same classes"
        )
    number = {name: i for i, name in enumerate(fit.classes)}
    known = [number.get(name, -1) for name in test.classes]  # -1: ignored boxes alone, of a class of no interest
    keep = [np.array([known[i] >= 0 for i in y], dtype=bool) for y in test.labels]
    labels = [np.array([known[i] for i in y], dtype=np.int64)[kept] for y, kept in zip(test.labels, keep, strict=True)]
    return fit, replace(
        test,
        boxes=tuple(x[kept] for x, kept in zip(test.boxes, keep, strict=True)),
        labels=tuple(labels),
        ignored=tuple(x[kept] for x, kept in zip(test.ignored, keep, strict=True)),
        classes=fit.classes,
        categories=fit.categories,
    )


def open_detection(data: str, split: Split) -> DetectionSet:
    """The images of one split; DATA or the one folder in it that has such a layout.

    Raises:
        UserError: as `detection_splits`.
    """
    root = Path(data).expanduser()
    if not data or not root.is_dir():
        raise UserError(f"{data} is not a folder; {_EXPECTED}")
    roots = _roots(root) or [below for child in sorted(root.iterdir()) if child.is_dir() for below in _roots(child)]
    if len(roots) != 1:
        names = ", ".join(str(folder) for folder, _ in roots[:3])
        raise UserError(
            f"{data} holds {f'several sets of boxes ({names}): give one' if roots else f'no annotations: {_EXPECTED}'}"
        )
    folder, layout = roots[0]
    read = _read_voc if layout == "voc" else _read_coco
    parts, classes, categories, entries = read(folder, split)
    where = f"{data} ({parts})"
    if not entries:
        raise UserError(f"{where} lists no image; {_EXPECTED}")
    missing = [entry.image for entry in entries if not entry.image.is_file()]
    if missing:
        raise UserError(
            f"{where} names {len(missing)} of {len(entries)} images that are not there, the first {missing[0]}; "
            "add them, or take them off the list"
        )
    if not any(entry.boxes for entry in entries):
        raise UserError(f"{where} has no boxes in its {len(entries)} images; detection cannot be measured on it")
    entries = _within(entries, where)
    return DetectionSet(
        name=data,
        parts=parts,
        images=tuple(entry.image for entry in entries),
        numbers=tuple(entry.number for entry in entries),
        sizes=np.array([entry.size for entry in entries], dtype=np.int64),
        boxes=tuple(np.array([box for box, _, _ in e.boxes], dtype=np.float64).reshape(-1, 4) for e in entries),
        labels=tuple(np.array([label for _, label, _ in e.boxes], dtype=np.int64) for e in entries),
        ignored=tuple(np.array([out for _, _, out in e.boxes], dtype=bool) for e in entries),
        classes=classes,
        categories=categories,
    )


# --- what both layouts give

_Corners = tuple[float, float, float, float]  # xyxy
_Box = tuple[_Corners, int, bool]  # label, ignored
_Read = tuple[str, tuple[str, ...], tuple[int, ...], "list[_Entry]"]


@dataclass(frozen=True)
class _Entry:
    image: Path
    number: int
    size: tuple[int, int]
    boxes: tuple[_Box, ...]


def _roots(folder: Path) -> list[tuple[Path, str]]:
    roots = []
    if (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir():
        roots.append((folder, "voc"))
    if (folder / "annotations").is_dir() and any((folder / "annotations").glob("instances_*.json")):
        roots.append((folder, "coco"))
    return roots


def _within(entries: list[_Entry], where: str) -> list[_Entry]:
    """Boxes cut to their image; those without area are left out, and both are counted."""
    cut, dropped, kept = [], [], []
    for entry in entries:
        width, height = entry.size
        boxes = []
        for (x0, y0, x1, y1), label, ignored in entry.boxes:
            inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
            text = f"{entry.image.name}: ({x0:g}, {y0:g}, {x1:g}, {y1:g}) in {width} x {height} px"
            if inside[2] <= inside[0] or inside[3] <= inside[1]:
                dropped.append(text)
                continue
            # a pixel more or less is how tools count from 0 or from 1
            if max(abs(a - b) for a, b in zip(inside, (x0, y0, x1, y1), strict=True)) > 1:
                cut.append(text)
            boxes.append((inside, label, ignored))
        kept.append(replace(entry, boxes=tuple(boxes)))
    if cut:
        logger.warning(
            "%s: %d boxes reach out of their image and were cut to it, the first in %s", where, len(cut), cut[0]
        )
    if dropped:
        logger.warning("%s: %d boxes without area were left out, the first in %s", where, len(dropped), dropped[0])
    if not any(entry.boxes for entry in kept):
        raise UserError(f"{where} has no box of positive area within its image, the first in {dropped[0]}; mend them")
    return kept


def _size(image: Path, width: Any, height: Any) -> tuple[int, int]:
    """As annotated, or from the image where the annotation has none (some tools write 0)."""
    if width and height:
        return int(width), int(height)
    if not image.is_file():
        return 1, 1  # named among the missing
    try:
        return read_size(image)
    except UnreadableImage as error:
        raise UserError(f"{image} cannot be read ({error.reason}); mend it, or take it off the list") from None


# --- Pascal VOC


def _read_voc(folder: Path, split: Split) -> _Read:
    lists = folder / "ImageSets" / "Main"
    has = [name for name in ("train", "val", "trainval", "test") if (lists / f"{name}.txt").is_file()]
    both = (
        ["train", "val"]
        if {"train", "val"} <= set(has)
        else [name for name in ("trainval", "train") if name in has][:1]
    )
    parts = {
        "train": both if "test" in has else ["train"],
        "test": ["test"] if "test" in has else ["val"],
        "train without val": ["train"],
        "val": ["val"],
    }[split]
    if not parts or not set(parts) <= set(has):
        raise UserError(f"{lists} has {', '.join(f'{n}.txt' for n in has) or 'no list'}; {split} needs "
                        f"{' and '.join(f'{n}.txt' for n in parts or ['train'])}")  # fmt: skip
    names = [name for part in parts for name in _lines(lists / f"{part}.txt")]
    images = {image.stem: image for image in _images(folder / "JPEGImages")}
    annotated = []
    for number, name in enumerate(names, start=1):
        image = images.get(name, folder / "JPEGImages" / f"{name}.jpg")
        annotated.append((number, image, *_objects(folder / "Annotations" / f"{name}.xml", image)))
    classes = tuple(sorted({label for *_, objects in annotated for _, label, _ in objects}))
    index = {name: i for i, name in enumerate(classes)}
    entries = [
        _Entry(image, number, size, tuple((box, index[label], ignored) for box, label, ignored in objects))
        for number, image, size, objects in annotated
    ]
    return "+".join(parts), classes, tuple(range(1, len(classes) + 1)), entries


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); expected the name of an image on each line") from None


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {_EXPECTED}")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def _objects(file: Path, image: Path) -> tuple[tuple[int, int], list[tuple[_Corners, str, bool]]]:
    """Size and boxes of an image. VOC counts pixels from 1 and names the last one: 1 to W is the whole width."""
    try:
        root = ElementTree.parse(file).getroot()
        objects: list[tuple[_Corners, str, bool]] = []
        for entry in root.iter("object"):
            place = entry.find("bndbox")
            corners = ["" if place is None else place.findtext(key, "") for key in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0, x1, y1 = (float(text) for text in corners)
            name = entry.findtext("name", "").strip()
            if not name or not all(map(math.isfinite, (x0, y0, x1, y1))):
                raise ValueError("an object without a name or with a box that is no numbers")
            objects.append(((x0 - 1, y0 - 1, x1, y1), name, entry.findtext("difficult", "0").strip() == "1"))
        size = _size(image, *(int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height")))
    except FileNotFoundError:
        raise UserError(f"{file} does not exist, but a list names it; add it, or take it off the list") from None
    except (ElementTree.ParseError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{file} is not a VOC annotation ({error}); expected XML with object/name and object/bndbox with xmin, "
            "ymin, xmax and ymax"
        ) from None
    return size, objects


# --- COCO


def _read_coco(folder: Path, split: Split) -> _Read:
    part = "train" if split.startswith("train") else "val"
    files = sorted((folder / "annotations").glob(f"instances_{part}*.json"))
    if len(files) != 1:
        raise UserError(
            f"{folder / 'annotations'} has {', '.join(f.name for f in files) or f'no instances_{part}*.json'}; "
            f"expected one instances_{part}*.json"
        )
    file = files[0]
    name = file.stem.removeprefix("instances_")
    places = [folder / name, folder / "images" / name, folder / part, folder / "images" / part]
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise UserError(f"the images of {file} are not there; expected them in {places[0]}")
    try:
        content = json.loads(file.read_bytes())
        categories = sorted(content["categories"], key=lambda c: int(c["id"]))
        index = {int(category["id"]): i for i, category in enumerate(categories)}
        boxes: dict[int, list[_Box]] = {int(entry["id"]): [] for entry in content["images"]}
        if len(boxes) < len(content["images"]) or len(index) < len(categories):
            raise ValueError("two images or two categories share an id")
        for number, entry in enumerate(content["annotations"]):
            x, y, width, height = (float(v) for v in entry["bbox"])
            if not all(map(math.isfinite, (x, y, width, height))):
                raise ValueError(f"annotation {number} has a bbox that is no numbers")
            if int(entry["image_id"]) not in boxes or int(entry["category_id"]) not in index:
                raise ValueError(f"annotation {number} is of an image or a category that is not listed")
            box = (x, y, x + width, y + height)
            boxes[int(entry["image_id"])].append((box, index[int(entry["category_id"])], bool(entry.get("iscrowd", 0))))
        entries = []
        for entry in content["images"]:
            image = images / entry["file_name"]
            size = _size(image, entry.get("width"), entry.get("height"))
            entries.append(_Entry(image, int(entry["id"]), size, tuple(boxes[int(entry["id"])])))
        classes = tuple(str(category["name"]) for category in categories)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{file} is not a COCO annotation ({reason}); expected JSON with images, categories and annotations with "
            "image_id, category_id and bbox [x, y, width, height]"
        ) from None
    return name, classes, tuple(index), entries
