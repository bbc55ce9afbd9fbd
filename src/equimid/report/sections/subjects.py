"""Records of each subject, and what the sections make of them: plots of lines, tables, scores, warnings."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Plot, Plots, Row, Table, Text
from equimid.report.figures import Dot, Line
from equimid.report.formatting import ASIDE, describe, digits, entry, gathered, metric_name, signed, title, words
from equimid.report.read_run import Run
from equimid.report.series import CHANCE, RANDOM, Series

__all__ = [
    "Subjects", "data_of", "finite", "grouped", "heading", "line_plot", "line_plots", "of", "only", "records_of",
    "score_blocks", "tabulate", "value_range", "warnings",
]  # fmt: skip

Subjects = Sequence[tuple[Series, Sequence[Record]]]  # the records of each subject that has some

SPOKEN = 6  # points of a line that its description names; of more the first, the last, the lowest and the highest


def heading(text: str) -> Text:
    return Text(text, "heading")


# --- records


def of(series: Sequence[Series], *evaluations: str) -> Subjects:
    """The subjects' records of those evaluations, in the order of their names here."""
    each = [(s, [r for name in evaluations for r in s.records if r.evaluation == name]) for s in series]
    return [(s, records) for s, records in each if records]


def only(subjects: Subjects, condition: Callable[[Record], Any]) -> Subjects:
    """The records that meet the condition."""
    each = [(s, [r for r in records if condition(r)]) for s, records in subjects]
    return [(s, records) for s, records in each if records]


def grouped(subjects: Subjects, key: Callable[[Record], Any]) -> dict[Any, Subjects]:
    """{key: the records that have it}, in the order that they come."""
    keys = dict.fromkeys(key(r) for r in records_of(subjects))
    return {
        value: [(s, kept) for s, records in subjects if (kept := [r for r in records if key(r) == value])]
        for value in keys
    }


def data_of(r: Record) -> str:
    return r.data


def records_of(subjects: Subjects) -> list[Record]:
    return [r for _, records in subjects for r in records]


def finite(records: Iterable[Record]) -> list[tuple[Record, float]]:
    """Records with their values, where they have one that can be drawn."""
    return [(r, r.value) for r in records if r.value is not None and math.isfinite(r.value)]


def value_range(records: Iterable[Record]) -> tuple[float, float]:
    """One scale in percent from 0 for several plots: the eye compares them."""
    highest = max((max(value, r.high or 0.0) for r, value in finite(records)), default=100.0)
    return 0.0, min(100.0, 10.0 * math.ceil(highest / 10 + 0.2)) + 2.0


# --- plots


def line_plots(
    name: str,
    what: str,
    subjects: Subjects,
    panel: Callable[[Record], str],
    x: str,
    unit: str = "%",
    least: int = 1,
    note: Callable[[str], str] = lambda _: "",
    y_range: tuple[float, float] | None = None,
    **look: Any,
) -> list[Plot]:
    """A plot for each panel, all on one scale: a line for each subject, and chance where records have one.

    name:  begins the plots' ids
    what:  is measured; begins the plots' descriptions
    panel: of a record, the caption of its plot
    x:     the detail of the records that is their place on the axis; without it a record is not drawn
    least: places on the axis; a plot of fewer is left out
    note:  of a panel, what stands beside its caption
    """
    plots: list[Plot] = []
    look = {"x_label": x, "y_range": y_range or value_range(records_of(subjects)), **look}
    for caption, part in grouped(only(subjects, lambda r: type(r.details.get(x)) in (int, float)), panel).items():
        lines = [(s.label, _line(s, records, x)) for s, records in part]
        if len({place for _, line in lines for place in line.x}) < least:
            continue
        chance = _chance(part, x)
        id = f"{name}-{len(plots)}"
        plots.append(line_plot(id, what, caption, lines, unit, chance, note(caption), **look))
    return plots


def line_plot(
    name: str,
    what: str,
    caption: str,
    lines: Sequence[tuple[str, Line]],
    unit: str | None,
    chance: Sequence[Line] = (),
    note: str = "",
    **look: Any,
) -> Plot:
    """A plot of named lines. unit: of values, for their digits; None: of any size."""
    lines = [(label, line) for label, line in lines if line.x]
    names = look.get("x_names", ())

    def spoken(line: Line) -> str:
        points = list(zip(line.x, line.y, strict=True))
        if len(points) > SPOKEN:
            ends = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
            points = sorted({points[0], *ends, points[-1]})
        values = [f"{value:.4g}" if unit is None else digits(value, unit) for _, value in points]
        places = [names[round(place)] if names else f"{place:g}" for place, _ in points]
        return ", ".join(f"{value} at {place}" for value, place in zip(values, places, strict=True))

    said = [f"{label} {spoken(line)}" for label, line in lines]
    if chance:
        said.append(
            f"chance {', '.join(digits(level, '%') for level in sorted({y for line in chance for y in line.y}))}"
        )
    alt = f"{what}, {caption}: {'; '.join(said) or 'no finite value'}"
    return Plot(caption, figures.lines(name, alt, [*(line for _, line in lines), *chance], **look), note)


def _line(s: Series, records: Sequence[Record], x: str) -> Line:
    """Of several values of one place the later counts."""
    points = {r.details[x]: (value, r.low, r.high) for r, value in finite(records)}
    line = figures.with_points(s.line, [(place, *points[place]) for place in sorted(points)])
    return replace(line, rings=s.regularised if x == "layer" else ())


def _chance(subjects: Subjects, x: str) -> list[Line]:
    """Chance by place: a line for all subjects that share it."""
    each = [sorted({(r.details[x], r.details["chance"]) for r in rs if "chance" in r.details}) for _, rs in subjects]
    return [
        replace(CHANCE, x=[place for place, _ in points], y=[level for _, level in points])
        for points in dict.fromkeys(map(tuple, each))
        if points
    ]


# --- tables


def tabulate(
    label: str,
    corner: str,
    subjects: Subjects,
    row: Callable[[Series, Record], str],
    column: Callable[[Series, Record], str] = lambda s, _: s.label,
    first: str = "",
    columns: Sequence[str] = (),
) -> Table:
    """A table of records by row and column, in the order that they come; of a cell's metrics `first` is the value."""
    cells: dict[str, dict[str, list[Record]]] = {}
    names = dict.fromkeys(columns)
    for s, records in subjects:
        for r in records:
            cells.setdefault(row(s, r), {}).setdefault(column(s, r), []).append(r)
            names[column(s, r)] = None
    rows = [
        Row(head, [gathered(by_column.get(name, []), first) for name in names]) for head, by_column in cells.items()
    ]
    return Table(label, corner, list(names), rows)


def score_blocks(name: str, label: str, subjects: Subjects, short: bool = False) -> list[Block]:
    """A table of subjects by metrics, and one dot plot per metric.

    name:  begins the plots' ids
    short: columns are called by the metric alone
    """
    if not subjects:
        return []
    columns = {_column(r, short): r for r in records_of(subjects)}
    cells = [(s, [[r for r in records if _column(r, short) == c] for c in columns]) for s, records in subjects]
    rows = [Row(s.label, [_entries(cell, s.run) for cell in of_subject], quiet=not s.own) for s, of_subject in cells]
    plots: list[Plot] = []
    shots = sum("per_class" in r.details for r in columns.values())
    for number, ((caption, unit, *_), r) in enumerate(columns.items()):
        # numbers of shots are one curve, and scores that drop are drawn by pose
        if _is_drop(r) or ("per_class" in r.details and shots > 1):
            continue
        points = [
            Dot(s.label, value, r.low, r.high, s.line.colour, s.line.marker or "x")
            for s, of_subject in cells
            for r, value in finite(of_subject[number])
        ]
        if len(points) > 1:
            alt = f"{caption}: " + ", ".join(f"{p.label} {digits(p.value, unit)}" for p in points)
            plots.append(Plot(caption, figures.dots(f"{name}-{len(plots)}", alt, points, unit or caption)))
    table = Table(label, "Subject", [caption for caption, *_ in columns], rows)
    return [table, Plots(plots, "wide")] if plots else [table]


def warnings(subjects: Subjects) -> list[Block]:
    """What the records themselves warn of, each warning once with those whom it concerns."""
    concerned: dict[str, dict[str, None]] = {}
    for s, records in subjects:
        for r in records:
            texts = [str(r.details[key]) for key in ("warning", "set") if r.details.get(key)]
            for key, text in (("settings", "measured with"), ("resized", "images were resized,")):
                if r.details.get(key):
                    texts.append(f"{text} {r.details[key]}")
            if missing := r.details.get("missing"):
                more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
                texts.append(f"missing are {', '.join(map(str, missing[:20]))}{more}")
            for text in texts:
                concerned.setdefault(f"{title(r.evaluation, r.metric)}: {text}.", {})[s.label] = None
    return [Text(text, "note", ", ".join(labels)) for text, labels in concerned.items()]


def _column(r: Record, short: bool) -> tuple[str, str, str, str]:
    """Heading, unit and identity of a record's column."""
    name = metric_name(r.metric) if short else title(r.evaluation, r.metric)
    if "per_class" in r.details:
        name += f", {r.details['per_class']} a class"
    if _is_drop(r):
        name += f", {words(str(r.details['kind']))}"
    if r.details.get("corruption") == "none":
        name = f"clean {name}"
    return name, r.unit, r.evaluation, r.metric


def _is_drop(r: Record) -> bool:
    """How much of a score is lost under a kind of pose."""
    return r.metric.endswith("_drop") and "kind" in r.details


def _entries(records: Sequence[Record], run: Run) -> list[Entry]:
    """A cell: each record with its difference to the run's own random network; several are told apart by what
    differs in their details."""
    keys = dict.fromkeys(k for r in records for k in r.details if k not in ASIDE)
    differing = [k for k in keys if len({json.dumps(r.details.get(k), default=str) for r in records}) > 1]
    names = [describe(r, differing) for r in records]
    return [entry(r, _change(r, run), [name] if name else []) for r, name in zip(records, names, strict=True)]


def _change(r: Record, run: Run) -> str:
    same = (_column(r, False), r.data)
    random = [o for o in run.records if (_column(o, False), o.data) == same and o.subject == RANDOM != r.subject]
    if len(random) > 1:
        random = [o for o in random if o.details == r.details]
    if not random or r.value is None or random[0].value is None:
        return ""
    return signed(r.value - random[0].value, r.unit)
