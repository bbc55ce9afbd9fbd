"""Drawn images in the layouts that equimid reads, the same on every machine up to the JPEG encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from golden_runs.hashes import of_bytes

__all__ = ["FOLDERS", "draw_all", "folder_hash"]

FOLDERS = ("files", "large", "labelled", "imagenet-c", "imagenet-p", "voc", "coco", "segmentation")

_CLASSES = ("n1", "n2", "n3", "n4")
_CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
_PERTURBATIONS = (
    "gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness", "translate", "rotate", "tilt",
    "scale",
)  # fmt: skip
_ORIENTATION = 0x0112


def draw_all(root: Path) -> None:
    """All FOLDERS, in root."""
    draw = (_draw_files, _draw_large, _draw_labelled, _draw_corrupted, _draw_videos, _draw_voc, _draw_coco, _draw_masks)
    for name, function in zip(FOLDERS, draw, strict=True):
        function(root / name)


def folder_hash(folder: Path) -> str:
    """Of all files' names and bytes."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    texts = [f"{file.relative_to(folder).as_posix()} {of_bytes(file.read_bytes())}" for file in files]
    return of_bytes("\n".join(texts).encode())


def _smooth(seed: int, size: tuple[int, int], noise: float = 6.0) -> Image.Image:
    """A little like a photograph: smooth colours and noise; size is (width, height)."""
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(
        np.clip(np.asarray(cells) + rng.normal(0, noise, (size[1], size[0], 3)), 0, 255).astype(np.uint8)
    )


def _save(image: Image.Image, file: Path, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


def _draw_files(folder: Path) -> None:
    """96 files of many kinds, and one that is cut off."""
    for k in range(96):
        image = _smooth(k, (40 + 5 * (k % 6), 36 + 7 * (k % 5)))
        file = folder / f"part{k % 3}" / f"{k:02}.jpg"
        if k % 8 == 1:
            _save(image, file.with_suffix(".png"))
        elif k % 16 == 2:
            _save(image.convert("L"), file, quality=90)
        elif k % 16 == 3:
            exif = Image.Exif()
            exif[_ORIENTATION] = 6
            _save(image, file, quality=90, exif=exif)
        elif k % 32 == 4:
            _save(image.convert("CMYK"), file, quality=90)
        elif k % 32 == 5:
            grey = np.asarray(image.convert("L"), dtype=np.uint16) * 257
            _save(Image.fromarray(grey), file.with_suffix(".png"))
        else:
            _save(image, file, quality=90)
    (folder / "cut.jpg").write_bytes((folder / "part0" / "00.jpg").read_bytes()[:300])


def _draw_large(folder: Path) -> None:
    """Files that fill more than one shard."""
    for k in range(48):
        _save(_smooth(1000 + k, (240, 200 + k), 40.0), folder / f"class{k % 2}" / f"{k:02}.jpg", quality=92)


def _of_class(number: int, seed: int, size: int = 40, noise: float = 60.0) -> Image.Image:
    """Stripes in the direction of the class under noise: hard enough that accuracies are no round numbers."""
    rng = np.random.default_rng(1000 * number + seed)
    y, x = np.mgrid[:size, :size] / size
    angle = np.pi * number / len(_CLASSES)
    wave = np.sin(12 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6))
    pixels = 128 + 50 * wave[..., None] * rng.uniform(0.3, 1, 3) + rng.normal(0, noise, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw_labelled(folder: Path) -> None:
    for part, each, first in (("train", 24, 0), ("test", 20, 100)):
        for number, name in enumerate(_CLASSES):
            for k in range(each):
                _save(_of_class(number, first + k), folder / part / name / f"{k}.png")


def _draw_corrupted(folder: Path) -> None:
    for c, corruption in enumerate(_CORRUPTIONS):
        for severity in range(1, 6):
            for number, name in enumerate(_CLASSES[:2]):
                image = _of_class(number, 200 + c, 32, 10.0 * severity + c)
                _save(image, folder / "group" / corruption / str(severity) / name / "0.png")


def _draw_videos(folder: Path) -> None:
    for p, perturbation in enumerate(_PERTURBATIONS):
        for number, name in enumerate(_CLASSES[:2]):
            for frame in range(4):
                image = _of_class(number, 300 + p, 32, 20.0 * (1 + frame))
                _save(image, folder / perturbation / name / "video" / f"frame_{frame}.png")


def _boxes(seed: int, size: tuple[int, int] = (64, 48)) -> tuple[Image.Image, list[tuple[list[int], str]]]:
    """A red and maybe a blue rectangle on grey: the image, and [x0, y0, x1, y1] with the class."""
    rng = np.random.default_rng(seed)
    pixels, boxes = np.full((size[1], size[0], 3), 128, np.uint8), []
    for name, colour in (("red", (220, 50, 40)), ("blue", (40, 60, 220)))[: 1 + seed % 2]:
        w, h = (int(v) for v in rng.integers(12, 28, 2))
        x, y = int(rng.integers(0, size[0] - w)), int(rng.integers(0, size[1] - h))
        pixels[y : y + h, x : x + w] = colour
        boxes.append(([x, y, x + w, y + h], name))
    return Image.fromarray(pixels), boxes


def _draw_voc(folder: Path) -> None:
    for part, count, first in (("train", 8, 0), ("test", 5, 50)):
        names = [f"{part}{k}" for k in range(count)]
        for k, name in enumerate(names):
            image, boxes = _boxes(first + k)
            _save(image, folder / "JPEGImages" / f"{name}.png")
            objects = ""
            for (x0, y0, x1, y1), of in boxes:
                corners = f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>"
                objects += f"<object><name>{of}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
            sides = f"<size><width>{image.width}</width><height>{image.height}</height></size>"
            _write(folder / "Annotations" / f"{name}.xml", f"<annotation>{sides}{objects}</annotation>")
        _write(folder / "ImageSets" / "Main" / f"{part}.txt", "\n".join(names) + "\n")


def _draw_coco(folder: Path) -> None:
    numbers = {"red": 3, "blue": 7}
    for part, count, first in (("train", 6, 100), ("val", 4, 150)):
        images, annotations = [], []
        for k in range(count):
            image, boxes = _boxes(first + k, (60, 52))
            _save(image, folder / part / f"{k}.png")
            images.append({"id": k + 1, "file_name": f"{k}.png", "width": image.width, "height": image.height})
            for (x0, y0, x1, y1), of in boxes:
                box = [x0, y0, x1 - x0, y1 - y0]
                annotations.append(
                    {
                        "id": len(annotations) + 1, "image_id": k + 1, "category_id": numbers[of], "bbox": box,
                        "area": box[2] * box[3], "iscrowd": 0,
                    }
                )  # fmt: skip
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write(folder / "annotations" / f"instances_{part}.json", json.dumps(content))


def _draw_masks(folder: Path) -> None:
    numbers = {"red": 1, "blue": 2}
    for part, count, first in (("train", 8, 200), ("test", 4, 250)):
        for k in range(count):
            image, boxes = _boxes(first + k, (48, 48))
            mask = np.zeros((48, 48), np.uint8)
            for (x0, y0, x1, y1), name in boxes:
                mask[y0:y1, x0:x1] = numbers[name]
            mask[:2] = 255
            _save(image, folder / part / "images" / f"{k}.png")
            _save(Image.fromarray(mask), folder / part / "masks" / f"{k}.png")
    _write(folder / "classes.txt", "ground\nred\nblue\n")


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
