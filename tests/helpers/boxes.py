"""Drawn images with coloured rectangles, in the layouts of Pascal VOC and COCO, and a small network, for tests of
detection."""

import json

import numpy as np
import timm
import torch
from PIL import Image

from equimid.backbones import TimmEncoder
from equimid.evaluation import EvaluationConfig, Scope
from equimid.evaluation.config import DetectionConfig
from equimid.evaluation.study import Study

COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}
QUICK = {"image_size": 32, "batch_size": 4, "width": 8, "proposals": 20, "anchor": 8, "rate": 3e-3}


def network(seed=0, **arguments):
    torch.manual_seed(seed)
    arguments = {"patch_size": 8, "img_size": 32, "dynamic_img_size": True, **arguments}
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0}
    return TimmEncoder(timm.create_model("vit_tiny_patch16_224", **sizes, **arguments), "drawn")


def study(folder, encoder=None, seed=0, workers=0, subject="backbone", **settings):
    config = EvaluationConfig(detection=DetectionConfig(**{**QUICK, **settings}))
    return Study(encoder or network(), Scope(subject, "drawn", seed, "abc"), config, folder, workers=workers)


def rectangles(count, seed=0, size=(64, 48)):
    """count x (pixels, [((x0, y0, x1, y1), class)]); one or two boxes in each, on grey."""
    rng, (width, height) = np.random.default_rng(seed), size
    for _ in range(count):
        pixels, objects = np.full((height, width, 3), 128, dtype=np.uint8), []
        for name in rng.choice(sorted(COLOURS), size=rng.integers(1, 3), replace=False):
            w, h = rng.integers(12, 28, 2)
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            pixels[y : y + h, x : x + w] = COLOURS[name]
            objects.append(((x, y, x + int(w), y + int(h)), str(name)))
        yield pixels, objects


def voc_object(box, name, difficult=0):
    corners = (box[0] + 1, box[1] + 1, box[2], box[3])  # VOC counts from 1 and names the last pixel
    places = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{places}</bndbox></object>"


def voc_image(root, name, size, objects, pixels=None):
    """One image with its annotation; objects are texts of `voc_object`."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    width, height = size
    grey = np.full((height, width, 3), 128, np.uint8)
    Image.fromarray(grey if pixels is None else pixels).save(root / f"JPEGImages/{name}.png")
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    (root / f"Annotations/{name}.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")


def voc_list(root, part, names):
    (root / f"ImageSets/Main/{part}.txt").write_text("\n".join(names) + "\n")


def voc(root, train=8, test=4):
    """A drawn set; returns its folder as text."""
    for part, count, seed in (("train", train, 0), ("test", test, 1)):
        names = [f"{part}{i}" for i in range(count)]
        for name, (pixels, objects) in zip(names, rectangles(count, seed), strict=True):
            voc_image(root, name, (64, 48), [voc_object(*each) for each in objects], pixels)
        voc_list(root, part, names)
    return str(root)


def coco(root, parts):
    """parts: {"train": (images, annotations, categories)} in COCO's form; grey images are drawn of their sizes."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, (images, annotations, categories) in parts.items():
        (root / part).mkdir(exist_ok=True)
        for entry in images:
            size = (entry.get("width", 20), entry.get("height", 10))
            Image.new("RGB", size, (128, 128, 128)).save(root / part / entry["file_name"])
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"annotations/instances_{part}.json").write_text(json.dumps(content))
    return str(root)
