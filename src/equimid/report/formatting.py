"""How records are written on the page: the names of what was measured, and its numbers."""

import math
from collections.abc import Iterable
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Entry

__all__ = ["describe", "digits", "entry", "gathered", "measured", "metric_name", "plain", "signed", "title", "words"]

EVALUATIONS = {
    "knn": "kNN",
    "mlp": "MLP",
    "fewshot": "few-shot",
    "imagenet_c": "ImageNet-C",
    "imagenet_p": "ImageNet-P",
    "imagenet_v2": "ImageNet-V2",
    "imagenet_r": "ImageNet-R",
    "imagenet_a": "ImageNet-A",
    "imagenet_sketch": "ImageNet-Sketch",
    "pose_probe": "pose probe",
}
METRICS = {
    "top1": "top-1",
    "top5": "top-5",
    "top1_all": "top-1 among all classes",
    "mean_top1": "mean top-1",
    "ce": "CE",
    "mce": "mCE",
    "flip_rate": "flip rate",
    "top5_distance": "top-5 distance",
    "mfr": "mFR",
    "mt5d": "mT5D",
    "near_top1": "top-1 within one patch",
    "retrieval_near": "retrieval within one patch",
    "map": "mAP",
    "map_50": "mAP at IoU 0.50",
    "map_75": "mAP at IoU 0.75",
    "mar_100": "mAR, 100 boxes",
    "miou": "mean IoU",
    "iou": "IoU",
    "map_posed": "mAP in other poses",
    "map_drop": "drop of mAP",
    "miou_posed": "mean IoU in other poses",
    "miou_drop": "drop of mean IoU",
}
# what a record's values are not named by
ASIDE = ("caption", "warning", "missing", "set", "resized", "label", "not_measurable", "left_out")


def words(name: str) -> str:
    """motion_blur: motion blur."""
    return name.replace("_", " ")


def metric_name(metric: str) -> str:
    return METRICS.get(metric, words(metric))


def title(evaluation: str, metric: str) -> str:
    """ImageNet-V2 top-1."""
    return f"{EVALUATIONS.get(evaluation, words(evaluation))} {metric_name(metric)}"


def plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def digits(value: float | None, unit: str) -> str:
    """Percentages to a tenth, the rest to a thousandth."""
    known = value is not None and math.isfinite(value)
    return f"{value:.{_places(unit)}f}".replace("-", "−") if known else "–"


def measured(r: Record) -> str:
    """A record in a sentence: 57.3 % linear top-1."""
    return f"{_value(r)} {title(r.evaluation, r.metric)}"


def signed(change: float, unit: str) -> str:
    """+1.2 points, −0.034."""
    return f"{change:+.{_places(unit)}f}".replace("-", "−") + (" points" if unit == "%" else "")


def describe(r: Record, keys: Iterable[str]) -> str:
    """Those details of a record in words."""
    return ", ".join(f"{words(k)} {plain(r.details[k])}" for k in keys if k in r.details)


def entry(r: Record, change: str = "", name: str = "") -> Entry:
    """A record in a table; below it the number of images, a difference, and what tells it from others."""
    counted = _counted(r) + (f" · {change}" if change else "")
    return Entry(_value(r), _interval(r), (counted, name) if name else (counted,))


def gathered(records: Iterable[Record], first: str) -> list[Entry]:
    """Several metrics of one thing as one entry: `first` is the value, the others stand below."""
    found = sorted(records, key=lambda r: r.metric != first)
    if not found:
        return []
    others = [_beside(r) for r in found if r.metric != first]
    if found[0].metric != first:
        return [Entry("", "", tuple(others))]
    # of several values of the metric itself the later one counts
    main = [r for r in found if r.metric == first][-1]
    counted = _counted(main) + (f" · chance {_chance(main)}" if "chance" in main.details else "")
    return [Entry(_value(main), _interval(main), (counted, *others))]


def _beside(r: Record) -> str:
    """A measure in one line: retrieval 12.0 % [10.0, 14.0], chance 1.6."""
    text = f"{metric_name(r.metric)} {_value(r)} {_interval(r)}".rstrip()
    return f"{text}, chance {_chance(r)}" if "chance" in r.details else text


def _counted(r: Record) -> str:
    """Behind the value; where there is none, why."""
    if r.value is None and "not_measurable" in r.details:
        return str(r.details["not_measurable"])
    left_out = f", {r.details['left_out']:,} left out" if r.details.get("left_out") else ""
    return f"n = {r.n:,}{left_out}"


def _chance(r: Record) -> str:
    """Two digits that count: among many patches it is far below a tenth."""
    return f"{r.details['chance']:.2g}"


def _value(r: Record) -> str:
    if r.value is None and "not_measurable" in r.details:
        return "not measurable"
    value = digits(r.value, r.unit)
    return f"{value} {r.unit}" if r.unit and value != "–" else value


def _interval(r: Record) -> str:
    known = r.low is not None and r.high is not None
    return f"[{digits(r.low, r.unit)}, {digits(r.high, r.unit)}]" if known else ""


def _places(unit: str) -> int:
    return 1 if unit == "%" else 3
