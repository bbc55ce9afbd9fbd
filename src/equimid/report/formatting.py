"""How records are written on the page: the names of what was measured, and its numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Entry

__all__ = [
    "describe",
    "digits",
    "entry",
    "gathered",
    "measured",
    "metric_name",
    "places",
    "plain",
    "signed",
    "title",
    "words",
]

# names that are not the record's own with spaces
EVALUATIONS = {
    "knn": "kNN", "mlp": "MLP", "fewshot": "few-shot", "imagenet_c": "ImageNet-C", "imagenet_p": "ImageNet-P",
    "imagenet_v2": "ImageNet-V2", "imagenet_r": "ImageNet-R", "imagenet_a": "ImageNet-A",
    "imagenet_sketch": "ImageNet-Sketch",
}  # fmt: skip
METRICS = {
    "top1": "top-1", "top5": "top-5", "top1_all": "top-1 among all classes", "mean_top1": "mean top-1", "ce": "CE",
    "mce": "mCE", "top5_distance": "top-5 distance", "mfr": "mFR", "mt5d": "mT5D",
    "near_top1": "top-1 within one patch", "retrieval_near": "retrieval within one patch",
    "map": "mAP", "map_50": "mAP at IoU 0.50", "map_75": "mAP at IoU 0.75", "mar_100": "mAR, 100 boxes",
    "map_posed": "mAP in other poses", "map_drop": "drop of mAP", "miou": "mean IoU", "iou": "IoU",
    "miou_posed": "mean IoU in other poses", "miou_drop": "drop of mean IoU",
}  # fmt: skip
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


def places(unit: str) -> int:
    """Percentages to a tenth, the rest to a thousandth."""
    return 1 if unit == "%" else 3


def digits(value: float | None, unit: str) -> str:
    known = value is not None and math.isfinite(value)
    return f"{value:.{places(unit)}f}".replace("-", "−") if known else "–"


def measured(r: Record) -> str:
    """A record in a sentence: 57.3 % linear top-1."""
    return f"{_value(r)} {title(r.evaluation, r.metric)}"


def signed(change: float, unit: str) -> str:
    """+1.2 points, −0.034."""
    return f"{change:+.{places(unit)}f}".replace("-", "−") + (" points" if unit == "%" else "")


def describe(r: Record, keys: Iterable[str]) -> str:
    """Those details of a record in words."""
    return ", ".join(f"{words(k)} {plain(r.details[k])}" for k in keys if k in r.details)


def entry(r: Record, change: str = "", below: Sequence[str] = ()) -> Entry:
    """A record in a table; below it the number of images, a difference, chance, and other lines."""
    chance = f"chance {_chance(r)}" if "chance" in r.details else ""
    return Entry(_value(r), _interval(r), (" · ".join(filter(None, (_counted(r), change, chance))), *below))


def gathered(records: Sequence[Record], first: str = "") -> list[Entry]:
    """Several metrics of one thing as one entry: `first`, by default the first one's, is the value, the others stand
    below; of several values of one metric the later counts."""
    if not records:
        return []
    first = first or records[0].metric
    others = tuple(_line(r) for r in records if r.metric != first)
    main = [r for r in records if r.metric == first]
    return [entry(main[-1], below=others)] if main else [Entry("", "", others)]


def _line(r: Record) -> str:
    """retrieval 12.0 % [10.0, 14.0], chance 1.6."""
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
