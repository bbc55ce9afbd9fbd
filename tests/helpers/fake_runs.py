"""Folders as runs and measurements leave them, with drawn numbers of the usual shape."""

import math
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from equimid.records import Record, write_records
from equimid.report import write_report

KINDS = ("quarter turns", "flip", "scale")


def fake_run(
    path: Path,
    *,
    ser: bool = True,
    records: bool = True,
    steps: int = 0,
    gain: float = 20.0,
    depth: int = 6,
    source: str = "digits",
    seed: int = 0,
) -> Path:
    """A folder as a run leaves it: random numbers, but of the usual shape."""
    path.mkdir(parents=True)
    draw = random.Random(f"{path.name} {seed}")
    config: dict[str, Any] = {
        "recipe": "demo",
        "seed": seed,
        "data": {"source": source, "workers": 2},
        "backbone": {
            "name": "vit_tiny", "image_size": 32, "patch_size": 4, "embed_dim": 96, "depth": depth,
            "num_heads": 3, "cls_layer": 3, "init": "random",
        },
        "views": {"posed_share": 0.02},
        "method": {"name": "mocov3", "temperature": 0.2},
        "ser": {"weight": 1.0, "temperature": 0.2, "layers": [3], "fraction": 0.5} if ser else None,
        "optim": {"name": "adamw", "lr": 1.5e-4},
        "train": {"batch_size": 256, "epochs": 30},
        "evaluation": {"knn_k": 20},
        "runtime": {"precision": "bf16"},
    }  # fmt: skip
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "data.json").write_text('{"schema": 1, "usable": 1794, "listed": 1797, "unreadable": []}')
    if steps:
        _fake_metrics(path / "metrics.csv", steps, ser, draw)
    if records:
        (path / "pictures").mkdir()
        Image.effect_noise((240, 80), 60).convert("RGB").save(path / "pictures" / "layer3.png")
        write_records(path / "records.jsonl", _fake_records(gain, depth, seed, draw, ser))
    return path


def fake_measured(path: Path, model: str = "timm:vit_tiny", weights: str = "pretrained", gain: float = 10.0) -> Path:
    """A folder as `equimid evaluate` leaves it for a network of others."""
    path.mkdir(parents=True)
    settings = {"model": model, "weights": weights, "data": "digits", "seed": 0, "evaluation": {"knn_k": 20}}
    (path / "model.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    found = _fake_records(gain, 6, 0, random.Random(path.name), False)
    found = [r for r in found if r.metric != "picture"]
    if weights == "random":
        found = [r for r in found if r.subject == "random"]
    write_records(path / "records.jsonl", found)
    return path


def record(evaluation: str, metric: str, value: float | None, subject: str = "backbone", **more: Any) -> Record:
    """A record with an interval, where a value has one."""
    common: dict[str, Any] = {"n": 500, "data": "digits", "seed": 0, "checkpoint": "abc", "unit": "%"} | more
    if value is not None:
        common = {"low": value - 2.0, "high": value + 2.0} | common
    return Record(evaluation, metric, value, subject=subject, **common)


def _fake_metrics(path: Path, steps: int, ser: bool, draw: random.Random) -> None:
    parts = ["total", "mocov3", *(["ser"] if ser else [])]
    header = ["step", "epoch", "seconds", "images_per_second", "lr", "momentum"]
    header += [f"loss/{p}" for p in parts] + ["gradient/base", *(["gradient/ser"] if ser else [])]
    header += ["feature/std", "feature/effective_rank"]
    lines = [",".join(header)]
    for step in range(1, steps + 1):
        done = step / steps
        row: list[object] = [step, step // 10, 1.3 * step, 190 + draw.gauss(0, 6)]
        row += [1.5e-4 * min(step / 40, 0.5 + 0.5 * math.cos(math.pi * done)), 1 - 0.01 * (1 - done)]
        row += [2 + 5 * math.exp(-4 * done) + draw.gauss(0, 0.08) for _ in parts]
        row += [5 * math.exp(-5 * done * draw.uniform(0.9, 1.1)) for _ in parts[1:]]
        row += [0.04 + 0.02 * done, 30 + 20 * done if step % 10 == 0 else ""]
        lines.append(",".join(map(str, row)))
    path.write_text("\n".join(lines) + "\n")


def _fake_records(gain: float, depth: int, seed: int, draw: random.Random, ser: bool) -> list[Record]:
    common: dict[str, Any] = {"data": "digits test", "seed": seed, "checkpoint": "abc"}
    records = []
    for evaluation, base in (("knn", 61.25), ("linear", 64.5)):
        for subject, value in (("backbone", base + gain), ("random", base), ("pixels", base - 7.5)):
            bounds = {"low": value - 2.25, "high": value + 2.25, "n": 597}
            records.append(Record(evaluation, "top1", value, subject=subject, unit="%", **bounds, **common))
    records += _fake_equivariance(depth, draw, ser, common)
    caption = {"layer": 3, "caption": "Layer 3: images, their quarter turns, and both token maps"}
    picture = "pictures/layer3.png"
    records.append(Record("feature_maps", "picture", None, 4, "backbone", details=caption, picture=picture, **common))
    return records


def _fake_equivariance(depth: int, draw: random.Random, ser: bool, common: dict[str, Any]) -> list[Record]:
    found = []

    def add(metric: str, value: float, subject: str, unit: str = "", **details: Any) -> None:
        half = 2.0 if unit else 0.02
        bounds = {"low": value - half, "high": value + half, "n": 256}
        found.append(
            Record("equivariance", metric, value, subject=subject, unit=unit, details=details, **bounds, **common)
        )

    for kind in KINDS:
        for layer in range(1, depth + 1):
            top = 0.5 + (0.4 * math.exp(-((layer - 3) ** 2) / 4) if ser else 0.25 - 0.05 * layer)
            where = {"layer": layer, "kind": kind}
            for subject, value in (
                ("backbone", top), ("random", 0.45 - 0.03 * layer), ("not_carried", 0.2), ("mismatched", 0.02)
            ):  # fmt: skip
                value += draw.uniform(-0.02, 0.02) if subject != "random" else 0.0
                for metric, more in (("place", 0.0), ("centred_cosine", 0.05), ("relative_error", 0.3)):
                    add(metric, value + more, subject, **where)
                if subject in ("backbone", "random"):
                    add("retrieval", 60 * value, subject, "%", chance=1.5625, **where)
                    add("retrieval_near", 90 * value, subject, "%", chance=11.5, **where)
    for subject in ("backbone", "random"):
        for layer in range(1, depth + 1):
            for fraction, value in (("between_images", 20.0), ("between_positions", 10.0), ("inside_images", 70.0)):
                add(fraction, value, subject, "%", layer=layer)
    return found


class Page(HTMLParser):
    """What a test asks of a page: its elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


def report(tmp_path: Path, *runs: Path) -> Page:
    return Page(write_report(runs, tmp_path / "report.html"))


CORRUPTIONS = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
PERTURBATIONS = ("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "brightness", "rotate", "scale")


def everything(path: Path, lift: float = 0.0, depth: int = 6) -> list[Record]:
    """A record of everything that can be measured, of a network and its references; pictures lie in the folder."""
    draw = random.Random(f"{path.name} everything")
    found: list[Record] = []
    for subject, base in (("backbone", 60.0 + lift), ("random", 42.0)):
        found += _robust(subject, base, draw)
        found += _poses(subject, base, depth, draw)
        found += [record(name, "top1", base + draw.uniform(0, 9), subject) for name in ("logistic", "mlp", "attentive")]
        for count, fraction in ((1, 0.4), (5, 0.7), (10, 0.85)):
            found.append(record("fewshot", "top1", fraction * base, subject, details={"per_class": count, "draws": 5}))
        for name, value in (("map", 0.3), ("map_50", 0.6), ("map_75", 0.25), ("mar_100", 0.4)):
            found.append(record("detection", name, value * base, subject, data="cells", details={"steps": 500}))
            for number, of in enumerate(("red cell", "white cell", "platelet")):
                details = {"class": of}
                more: dict[str, Any] = {"low": None, "high": None, "data": "cells", "details": details}
                found.append(record("detection", name, value * base - 4 * number, subject, **more))
        found.append(record("segmentation", "miou", 0.7 * base, subject, data="scenes"))
        for number, of in enumerate(("sky", "road", "tree")):
            found.append(
                record("segmentation", "iou", 0.7 * base - 5 * number, subject, data="scenes", details={"class": of})
            )
        found += _drops("detection", "map", 0.3 * base, subject, "cells", ("0.85 x 0.85", "1.15 x 1.15"), draw)
        found += _drops("segmentation", "miou", 0.7 * base, subject, "scenes", ("7 x 7 patches", "9 x 9 patches"), draw)
    found += _found_again(lift, depth)
    found.append(record("detection", "map", 0.1, "untrained neck", data="cells"))
    (path / "pictures").mkdir(exist_ok=True)
    for name, words in {
        "attention": "Image 1: the mean over heads, then each head",
        "neighbours": "Query 1 and the six nearest of 1,000 images",
        "detection": "Above as labelled, below what was found with a score above 0.5",
    }.items():
        Image.effect_noise((240, 80), 60).convert("RGB").save(path / "pictures" / f"{name}.png")
        found.append(record(name, "picture", None, details={"caption": words}, picture=f"pictures/{name}.png"))
    return found


def _drops(
    evaluation: str, metric: str, upright: float, subject: str, data: str, scales: tuple[str, ...], draw: random.Random
) -> list[Record]:
    """The score under each pose, and how much of it each kind of pose loses."""
    found, drops = [], []
    kinds = {"quarter turns": ("90 degrees", "180 degrees", "270 degrees"), "flip": ("mirrored left-right",)}
    for kind, poses in (kinds | {"scale": scales}).items():
        values = [upright * draw.uniform(0.5, 0.9) for _ in poses]
        for pose, value in zip(poses, values, strict=True):
            details = {"kind": kind, "pose": pose}
            found.append(record(evaluation, f"{metric}_posed", value, subject, data=data, details=details))
        drop, more = upright - sum(values) / len(values), {"kind": kind, "poses": len(poses), "upright": upright}
        drops.append(record(evaluation, f"{metric}_drop", drop, subject, data=data, details=more))
    return found + drops


def _robust(subject: str, base: float, draw: random.Random) -> list[Record]:
    found = []
    label = {"label": "generated"}
    clean: dict[str, Any] = {"corruption": "none", "severity": 0}
    found.append(record("generated_corruptions", "top1", base, subject, details=clean | label))
    found.append(record("generated_corruptions", "mean_top1", 0.6 * base, subject, details=label))
    found.append(record("imagenet_c", "mean_top1", 0.55 * base, subject, data="in-c", low=None, high=None))
    found.append(record("imagenet_c", "mce", 140 - base, subject, data="in-c", low=None, high=None))
    for kind in CORRUPTIONS:
        steep = draw.uniform(0.05, 0.16)
        for severity in range(1, 6):
            details: dict[str, Any] = {"corruption": kind, "severity": severity}
            value = base * (1 - steep * severity)
            found.append(record("generated_corruptions", "top1", value, subject, details=details | label))
            found.append(record("imagenet_c", "top1", 0.9 * value, subject, data="in-c", details=details))
        error = 145 - base + draw.uniform(-9, 9)
        found.append(record("imagenet_c", "ce", error, subject, data="in-c", low=None, details={"corruption": kind}))
    for metric, value, unit in (("mean_top1", 50.0, "%"), ("mfr", 80.0, "%"), ("mt5d", 90.0, "%")):
        found.append(record("imagenet_p", metric, value - 0.2 * base, subject, data="in-p", low=None, unit=unit))
    for kind in PERTURBATIONS:
        for metric, value, unit in (("flip_rate", 12.0, "%"), ("top5_distance", 2.5, ""), ("top1", base, "%")):
            value *= draw.uniform(0.8, 1.2)
            more: dict[str, Any] = {"data": "in-p", "unit": unit, "details": {"perturbation": kind}}
            found.append(record("imagenet_p", metric, value, subject, low=0.9 * value, high=1.1 * value, **more))
    for name, fraction in (("v2", 0.8), ("r", 0.3), ("sketch", 0.28), ("a", 0.1)):
        found.append(record(f"imagenet_{name}", "top1", fraction * base, subject, data=f"sets/{name}"))
        if name in ("r", "a"):
            found.append(record(f"imagenet_{name}", "top1_all", 0.6 * fraction * base, subject, data=f"sets/{name}"))
    return found


def _poses(subject: str, base: float, depth: int, draw: random.Random) -> list[Record]:
    found = [record("geometry", "top1", base, subject, details={"kind": "none", "pose": "upright"})]
    for kind, poses in (
        ("quarter turns", ("90 degrees", "180 degrees", "270 degrees")),
        ("flip", ("left to right",)),
        ("scale", ("6 x 6 patches", "9 x 9 patches")),
    ):
        for pose in poses:
            value = base * draw.uniform(0.6, 0.95)
            found.append(record("geometry", "top1", value, subject, details={"kind": kind, "pose": pose}))
    for angle in range(0, 181, 15):
        value = base * (0.6 + 0.35 * math.cos(math.radians(2 * angle)))
        details: dict[str, Any] = {"kind": "angle", "pose": f"{angle} degrees", "angle": angle}
        found.append(record("geometry", "top1", value, subject, details=details))
    for target, chance in (("turn", 25.0), ("flip", 50.0)):
        for layer in range(1, depth + 1):
            for source, keeps in (("map", 1.0), ("mean", 0.6), ("cls", 0.7)):
                kept = chance + (98 - chance) * keeps * (1 - 0.1 * layer) * (base / 80)
                details = {"layer": layer, "target": target, "from": source, "chance": chance}
                found.append(record("pose_probe", "top1", kept, subject, details=details))
        details = {"layer": depth, "target": target, "from": "embedding", "chance": chance}
        found.append(record("pose_probe", "top1", chance + 10, subject, details=details))
    return found


def _found_again(lift: float, depth: int) -> list[Record]:
    """Correspondence of some layers, also of the colours of patches."""
    found = []
    layers = (2, 3, 4, depth)
    turns: list[dict[str, Any]] = [{"kind": kind} for kind in ("quarter turns", "flip", "rotation")]
    turns += [{"kind": "rotation", "angle": angle} for angle in (5.0, 15.0, 30.0)]
    for subject, of, base in (
        ("backbone", layers, 30.0 + lift), ("random", layers, 12.0), ("patch_colours", (1,), 16.0)
    ):  # fmt: skip
        for layer in of:
            for turn in turns:
                for among, fraction, chance in (("image", 1.0, 1.5625), ("images", 0.4, 0.025)):
                    details = {"layer": layer, "among": among, "chance": chance, **turn}
                    value = fraction * (base - 0.2 * turn.get("angle", 0.0) - layer)
                    found.append(record("correspondence", "top1", value, subject, details=details))
                    near = details | {"chance": 8 * chance}
                    found.append(record("correspondence", "near_top1", 1.5 * value, subject, details=near))
    return found
