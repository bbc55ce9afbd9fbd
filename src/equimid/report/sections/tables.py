"""Tables of records, and what their records warn of."""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Note, Plot, Plots, Row, Table
from equimid.report.figures import Dot
from equimid.report.formatting import ASIDE, describe, digits, entry, gathered, metric_name, signed, title, words
from equimid.report.read_run import Run
from equimid.report.series import Series

__all__ = ["by_data", "finite", "score_blocks", "tabulate", "value_range", "warnings"]


def by_data(series: Sequence[Series], *evaluations: str) -> dict[str, dict[tuple[str, str], list[Record]]]:
    """{data set: {subject: its records}} of those evaluations, in the order that they come."""
    found: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for s in series:
        for r in s.of(*evaluations):
            found.setdefault(r.data, {}).setdefault(s.key, []).append(r)
    return found


def finite(records: Iterable[Record]) -> list[tuple[Record, float]]:
    """Records with their values, where they have one that can be drawn."""
    return [(r, r.value) for r in records if r.value is not None and math.isfinite(r.value)]


def value_range(records: Iterable[Record]) -> tuple[float, float]:
    """One scale in percent from 0 for several plots: the eye compares them."""
    highest = max((max(value, r.high or 0.0) for r, value in finite(records)), default=100.0)
    return 0.0, min(100.0, 10.0 * math.ceil(highest / 10 + 0.2)) + 2.0


def score_blocks(
    name: str, label: str, series: Sequence[Series], records: dict[tuple[str, str], list[Record]], short: bool = False
) -> list[Block]:
    """A table of subjects by metrics, and one dot plot per metric.

    name:  begins the plots' ids
    short: columns are called by the metric alone
    """
    columns: dict[tuple[str, str, str, str], dict[tuple[str, str], list[Record]]] = {}
    for subject, found in records.items():
        for r in found:
            columns.setdefault(_column(r, short), {}).setdefault(subject, []).append(r)
    shown = [s for s in series if records.get(s.key)]
    rows = [
        Row(s.label, [_entries(column.get(s.key, []), s.run) for column in columns.values()], quiet=not s.own)
        for s in shown
    ]
    plots: list[Plot] = []
    numbers_of_shots = [column for column in columns if column[2] == "fewshot"]
    for (heading, unit, evaluation, _), column in columns.items():
        if evaluation == "fewshot" and len(numbers_of_shots) > 1:
            continue  # they are one curve
        if all(_is_drop(r) for of in column.values() for r in of):
            continue  # the scores are drawn by pose
        points = [
            Dot(s.label, value, r.low, r.high, s.line.colour, s.line.marker or "x")
            for s in shown
            for r, value in finite(column.get(s.key, []))
        ]
        if len(points) > 1:
            alt = f"{heading}: " + ", ".join(f"{p.label} {digits(p.value, unit)}" for p in points)
            svg = figures.dots(f"{name}-{len(plots)}", alt, points, unit or heading)
            plots.append(Plot(heading, svg))
    blocks: list[Block] = [Table(label, "Subject", [heading for heading, *_ in columns], rows)]
    return [*blocks, Plots(plots, "wide")] if plots else blocks


def tabulate(
    label: str, corner: str, found: Iterable[tuple[str, str, Record]], first: str, columns: Sequence[str] = ()
) -> Table:
    """A table of (row, column, record) in the order that they come; of a cell's metrics `first` is the value."""
    cells: dict[str, dict[str, list[Record]]] = {}
    names = dict.fromkeys(columns)
    for row, column, r in found:
        cells.setdefault(row, {}).setdefault(column, []).append(r)
        names[column] = None
    rows = [Row(row, [gathered(of.get(column, []), first) for column in names]) for row, of in cells.items()]
    return Table(label, corner, list(names), rows)


def warnings(series: Sequence[Series], *evaluations: str) -> list[Block]:
    """What the records themselves warn of, each warning once with those whom it concerns."""
    told: dict[tuple[str, str], dict[str, None]] = {}
    for s in series:
        for r in s.of(*evaluations):
            texts = [str(r.details[key]) for key in ("warning", "set") if r.details.get(key)]
            if missing := r.details.get("missing"):
                texts.append(f"missing are {_listed(missing)}")
            if settings := r.details.get("settings"):
                texts.append(f"measured with {settings}")
            if resized := r.details.get("resized"):
                texts.append(f"images were resized, {resized}")
            for text in texts:
                about = title(r.evaluation, r.metric)
                told.setdefault((about, text), {})[s.label] = None
    return [Note(f"{about}: {text}.", ", ".join(subjects)) for (about, text), subjects in told.items()]


def _listed(names: Any, most: int = 20) -> str:
    found = [str(name) for name in names] if isinstance(names, list) else [str(names)]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def _column(r: Record, short: bool) -> tuple[str, str, str, str]:
    """Heading, unit and identity of a record's column."""
    heading = metric_name(r.metric) if short else title(r.evaluation, r.metric)
    if (count := r.details.get("per_class")) is not None and r.evaluation == "fewshot":
        heading += f", {count} a class"
    if _is_drop(r):
        heading += f", {words(str(r.details['kind']))}"
    if r.details.get("corruption") == "none":
        heading = f"clean {heading}"
    return heading, r.unit, r.evaluation, r.metric


def _is_drop(r: Record) -> bool:
    """How much of a score is lost under a kind of pose."""
    return r.metric.endswith("_drop") and "kind" in r.details


def _entries(records: Sequence[Record], run: Run) -> list[Entry]:
    """A cell: each record with its difference to the run's own random network; several are told apart by what
    differs in their details."""
    named: list[str] = []
    if len(records) > 1:
        keys = dict.fromkeys(k for r in records for k in r.details if k not in ASIDE)
        named = [k for k in keys if len({_text(r.details.get(k)) for r in records}) > 1]
    return [entry(r, _change(r, run), describe(r, named)) for r in records]


def _change(r: Record, run: Run) -> str:
    same = (_column(r, False), r.data)
    random = [o for o in run.records if (_column(o, False), o.data) == same and o.subject == "random" != r.subject]
    if len(random) > 1:
        random = [o for o in random if o.details == r.details]
    if not random or r.value is None or random[0].value is None:
        return ""
    return signed(r.value - random[0].value, r.unit)


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
