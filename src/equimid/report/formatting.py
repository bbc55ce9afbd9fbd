"""How records are written on the page: the names of what was measured, and its numbers."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from equimid.evaluation.registry import measurement_of
from equimid.records import Record
from equimid.report.blocks import Entry

__all__ = [
    "capital", "describe", "digits", "entry", "gathered", "measured", "metric_name", "places", "plain", "signed",
    "title",
]  # fmt: skip


def metric_name(r: Record) -> str:
    """Mean top-1."""
    return measurement_of(r.evaluation).metric_title(r.metric)


def title(r: Record) -> str:
    """ImageNet-V2 top-1."""
    return f"{measurement_of(r.evaluation).title} {metric_name(r)}"


def capital(text: str) -> str:
    """The text as a heading: its first letter is large."""
    return text[:1].upper() + text[1:]


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
    return f"{_value(r)} {title(r)}"


def signed(change: float, unit: str) -> str:
    """+1.2 points, −0.034."""
    return f"{change:+.{places(unit)}f}".replace("-", "−") + (" points" if unit == "%" else "")


def describe(r: Record, keys: Iterable[str]) -> str:
    """Those details of a record: "layer 3, kind flip"."""
    return ", ".join(f"{k.replace('_', ' ')} {plain(r.details[k])}" for k in keys if k in r.details)


def entry(r: Record, change: str = "", below: Sequence[str] = ()) -> Entry:
    """A record in a table; below it the number of images, a difference, chance, and other lines."""
    counted = f"n = {r.n:,}" + (f", {r.details['left_out']:,} left out" if r.details.get("left_out") else "")
    if r.value is None and "not_measurable" in r.details:
        counted = str(r.details["not_measurable"])
    return Entry(_value(r), _interval(r), (" · ".join(filter(None, (counted, change, _chance(r)))), *below))


def gathered(records: Sequence[Record], first: str = "") -> list[Entry]:
    """Several metrics of one thing as one entry: `first`, by default the first one's, is the value, the others stand
    below; of several values of one metric the later counts."""
    first = first or records[0].metric
    others = tuple(_line(r) for r in records if r.metric != first)
    main = [entry(r, below=others) for r in records if r.metric == first]
    return main[-1:] or [Entry("", "", others)] * bool(others)


def _line(r: Record) -> str:
    """retrieval 12.0 % [10.0, 14.0], chance 1.6."""
    return ", ".join(filter(None, (f"{metric_name(r)} {_value(r)} {_interval(r)}".rstrip(), _chance(r))))


def _chance(r: Record) -> str:
    """Two digits that count: among many patches it is far below a tenth."""
    return f"chance {r.details['chance']:.2g}" if "chance" in r.details else ""


def _value(r: Record) -> str:
    if r.value is None and "not_measurable" in r.details:
        return "not measurable"
    value = digits(r.value, r.unit)
    return f"{value} {r.unit}" if r.unit and value != "–" else value


def _interval(r: Record) -> str:
    known = r.low is not None and r.high is not None
    return f"[{digits(r.low, r.unit)}, {digits(r.high, r.unit)}]" if known else ""
