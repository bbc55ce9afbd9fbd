"""Tables of records by row and column, scores of subjects, and what records warn of."""

import json
from collections.abc import Callable, Sequence

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Plot, Plots, Row, Table, Text
from equimid.report.figures import Dot
from equimid.report.formatting import ASIDE, describe, digits, entry, gathered, metric_name, signed, title, words
from equimid.report.read_run import Run
from equimid.report.series import RANDOM, Series, Subjects, finite, records_of

__all__ = ["score_blocks", "tabulate", "warnings"]


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
    rows = [Row(head, [gathered(by.get(name, []), first) for name in names]) for head, by in cells.items()]
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
