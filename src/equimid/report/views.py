"""From records to blocks: a table of rows by columns, scores of subjects, lines over a detail, and a legend."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from equimid.records import Record, Subject
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Figure, Figures, Pairs, Table, TableRow, Text
from equimid.report.figures import INK, Line
from equimid.report.formatting import describe, digits, entry, gathered, metric_name, signed, title
from equimid.report.series import NAMES, SHARED, Point, Series, grouped

__all__ = ["curves", "key", "legend", "line_figure", "marks", "panel", "pivot", "scores", "value_range", "warnings"]

T = TypeVar("T", bound=Any)
CHANCE = Line("chance", dash=":")
NAMED_POINTS = 6  # points of a line that its description names; of more the first, the last, the lowest and the highest
# what a record's values are not named by
ASIDE = ("caption", "warning", "missing", "set", "resized", "label", "not_measurable", "left_out")


def pivot(
    label: str,
    corner: str,
    items: Sequence[T],
    row: Callable[[T], Any],
    column: Callable[[T], Any] = lambda p: p.series,
    cell: Callable[[Sequence[T]], Sequence[Entry]] = gathered,
    *,
    rows: Sequence[Any] = (),
    columns: Sequence[Any] = (),
    name: Callable[[Any], str] = str,
    quiet: Callable[[Any], bool] = lambda _: False,
    **look: Any,
) -> Table:
    """The table of items by row and column, in the order that they come; by default points by subject.

    cell:    entries of the items that meet in one
    rows:    that come first, and stand there without items; so do `columns`
    name:    of a column, what stands above it
    quiet:   of a row, whether it is a reference
    look:    of the table
    """
    cells = grouped(items, lambda item: (row(item), column(item)))
    heads = dict.fromkeys([*rows, *map(row, items)])
    across = dict.fromkeys([*columns, *map(column, items)])
    lines = [TableRow(str(r), [cell(cells[r, c]) if (r, c) in cells else [] for c in across], quiet(r)) for r in heads]
    return Table(label, corner, [name(c) for c in across], lines, **look)


def scores(name: str, label: str, points: Sequence[Point], short: bool = False) -> list[Block]:
    """A table of subjects by metrics, and one dot plot per metric.

    name:  begins the plots' ids
    short: columns are called by the metric alone
    """
    columns = grouped(points, lambda p: _column(p, short))
    shots = sum("per_class" in column[-1].details for column in columns.values())
    plots: list[Figure] = []
    for (caption, unit, *_), column in columns.items():
        dots = [_line(p.series, [(0.0, p)]) for p in column if _known(p)]
        # numbers of shots are one curve, and scores that drop are drawn by pose
        if len(dots) > 1 and not _is_drop(column[-1]) and not ("per_class" in column[-1].details and shots > 1):
            alt = f"{caption}: " + ", ".join(f"{dot.label} {digits(dot.y[0], unit)}" for dot in dots)
            plots.append(Figure(caption, figures.dots(f"{name}-{len(plots)}", alt, dots, unit or caption)))
    table = pivot(
        label, "Subject", points, lambda p: p.series, lambda p: _column(p, short), _entries,
        name=lambda column: column[0], quiet=lambda s: not s.own,
    )  # fmt: skip
    return [table, Figures(plots, "wide")]


def curves(
    name: str,
    what: str,
    points: Sequence[Point],
    caption: Callable[[Point], str],
    x: str,
    unit: str = "%",
    least: int = 1,
    note: Callable[[Sequence[Point]], str] = lambda _: "",
    y_range: tuple[float, float] | None = None,
    **look: Any,
) -> list[Figure]:
    """A plot for each caption, all on one scale: a line for each subject, and chance where records have one.

    name:  begins the plots' ids
    what:  is measured; begins the plots' descriptions
    x:     the detail of the records that is their place on the axis; without it a record is not drawn
    least: places on the axis; a plot of fewer is left out
    note:  of a plot's records, what stands beside its caption
    """
    plots: list[Figure] = []
    look = {"x_label": x, "y_range": y_range or value_range(points), **look}
    placed = [p for p in points if type(p.detail(x)) in (int, float)]
    for panel_title, part in grouped(placed, caption).items():
        lines, chance = [], []
        for s, own in grouped(part, lambda p: p.series).items():
            by_place = {p.details[x]: p for p in own if _known(p)}  # of several values of one place the later counts
            lines.append(_line(s, sorted(by_place.items()), s.regularised if x == "layer" else ()))
            chance.append(_chance(own, x))
        if len({place for line in lines for place in line.x}) >= least:
            plot_name, levels = f"{name}-{len(plots)}", list(dict.fromkeys(chance))
            plots.append(line_figure(plot_name, what, panel_title, lines, unit, levels, note(part), **look))
    return plots


def marks(
    name: str, what: str, caption: str, points: Sequence[Point], place: Callable[[Point], str], **look: Any
) -> Figure:
    """A mark for each place, subjects beside each other: an interval would hide another's."""
    places = list(dict.fromkeys(map(place, points)))
    subjects = grouped(points, lambda p: p.series)
    lines = []
    for number, (s, own) in enumerate(subjects.items()):
        aside = 0.5 * ((number + 0.5) / len(subjects) - 0.5)
        line = _line(s, [(places.index(place(p)) + aside, p) for p in own if _known(p)])
        lines.append(replace(line, dash="", marker=s.line.marker or "_"))
    names = [place.removesuffix(" patches") for place in places]
    return line_figure(name, what, caption, lines, "%", x_label="", x_names=names, width=4.2, **look)


def line_figure(
    name: str,
    what: str,
    caption: str,
    lines: Sequence[Line],
    unit: str | None,
    chance: Sequence[Line] = (),
    note: str = "",
    **look: Any,
) -> Figure:
    """A plot of named lines, whose description names their points. unit: of values, for their digits; None: of any
    size."""
    lines = [line for line in lines if line.x]
    names = look.get("x_names", ())

    def points_text(line: Line) -> str:
        points = list(zip(line.x, line.y, strict=True))
        if len(points) > NAMED_POINTS:
            ends = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
            points = sorted({points[0], *ends, points[-1]})
        values = [f"{value:.4g}" if unit is None else digits(value, unit) for _, value in points]
        places = [names[round(place)] if names else f"{place:g}" for place, _ in points]
        return ", ".join(f"{value} at {place}" for value, place in zip(values, places, strict=True))

    texts = [f"{line.label} {points_text(line)}" for line in lines]
    if levels := sorted({y for line in chance for y in line.y}):
        texts.append(f"chance {', '.join(digits(level, '%') for level in levels)}")
    alt = f"{what}, {caption}: {'; '.join(texts) or 'no finite value'}"
    return Figure(caption, figures.lines(name, alt, [*lines, *(line for line in chance if line.x)], **look), note)


def legend(name: str, points: Sequence[Point]) -> Pairs:
    """A piece of line and its name for each subject, for layers that SER acts on, and for chance, where the points
    have such; what depends on several runs shares one entry."""
    subjects = list(dict.fromkeys(p.series for p in points))
    dependent = grouped((s for s in subjects if not s.own and s.subject not in SHARED), lambda s: s.subject)
    shared = {subject: several for subject, several in sorted(dependent.items()) if len(several) > 1}
    lines = [replace(s.line, label=s.label) for s in subjects if s.own or s.subject not in shared]
    for subject, several in shared.items():
        label = f"{NAMES.get(subject, subject)}, in the colour of the run"
        lines.append(replace(several[0].line, label=label, colour=INK))
    if any("layer" in p.details and p.series.regularised for p in points):
        lines.append(Line("a layer that SER regularises", dash="", rings=(1,)))
    if any("chance" in p.details for p in points):
        lines.append(CHANCE)
    return key(name, lines)


def key(name: str, lines: Sequence[Line]) -> Pairs:
    """A piece of each line, and its label."""
    looks = {"-": "solid line", "--": "dashed line", ":": "dotted line", "-.": "line of dots and dashes"}
    pairs = []
    for number, line in enumerate(lines):
        alt = looks.get(line.dash, "ring" if line.rings else "mark")
        pairs.append((line.label, figures.swatch(f"legend-{name}-{number}", alt, line)))
    return Pairs(pairs, "key")


def panel(points: Sequence[Point], name: Callable[[Point], str]) -> Callable[[Point], str]:
    """The name, with the data where there are several."""
    several = len({p.data for p in points}) > 1
    return (lambda p: f"{name(p)}, {p.data}") if several else name


def value_range(points: Iterable[Record]) -> tuple[float, float]:
    """One scale in percent from 0 for several plots: the eye compares them."""
    highest = max((max(p.value or 0.0, p.high or 0.0) for p in points if _known(p)), default=100.0)
    return 0.0, min(100.0, 10.0 * math.ceil(highest / 10 + 0.2)) + 2.0


def warnings(points: Sequence[Point]) -> list[Block]:
    """What the records themselves warn of, each warning once with those whom it concerns."""
    concerned: dict[str, dict[str, None]] = {}
    before = {"warning": "", "set": "", "settings": "measured with ", "resized": "images were resized, "}
    for p in points:
        texts = [f"{text}{p.details[key]}" for key, text in before.items() if p.detail(key)]
        if missing := p.detail("missing"):
            more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
            texts.append(f"missing are {', '.join(map(str, missing[:20]))}{more}")
        for text in texts:
            concerned.setdefault(f"{title(p)}: {text}.", {})[p.series.label] = None
    return [Text(text, "note", ", ".join(labels)) for text, labels in concerned.items()]


def _known(r: Record) -> bool:
    """Whether it has a value that can be drawn."""
    return r.value is not None and math.isfinite(r.value)


def _line(s: Series, points: Sequence[tuple[float, Point]], rings: Sequence[float] = ()) -> Line:
    """A subject's line through (place on the axis, record)."""
    return replace(
        s.line,
        label=s.label,
        x=[place for place, _ in points],
        y=[p.value or 0.0 for _, p in points],
        low=[p.low for _, p in points],
        high=[p.high for _, p in points],
        rings=rings,
    )


def _chance(points: Sequence[Point], x: str) -> Line:
    """Chance by place; equal for all subjects that share it."""
    levels = sorted({(p.details[x], p.details["chance"]) for p in points if "chance" in p.details})
    return replace(CHANCE, x=tuple(place for place, _ in levels), y=tuple(level for _, level in levels))


def _column(r: Record, short: bool) -> tuple[str, str, str, str]:
    """Heading, unit and identity of a record's column."""
    name = metric_name(r) if short else title(r)
    if "per_class" in r.details:
        name += f", {r.details['per_class']} a class"
    if _is_drop(r):
        name += f", {r.details['kind']}".replace("_", " ")
    if r.details.get("corruption") == "none":
        name = f"clean {name}"
    return name, r.unit, r.evaluation, r.metric


def _is_drop(r: Record) -> bool:
    """How much of a score is lost under a kind of pose."""
    return r.metric.endswith("_drop") and "kind" in r.details


def _entries(points: Sequence[Point]) -> list[Entry]:
    """A cell: each record with its difference to the run's own random network; several are told apart by what
    differs in their details."""
    keys = dict.fromkeys(k for p in points for k in p.details if k not in ASIDE)
    differing = [k for k in keys if len({json.dumps(p.detail(k), default=str) for p in points}) > 1]
    return [entry(p, _change(p), [name] if (name := describe(p, differing)) else []) for p in points]


def _change(p: Point) -> str:
    same = (_column(p, False), p.data)
    random = [
        r
        for r in p.series.run.records
        if (_column(r, False), r.data) == same and r.subject == Subject.RANDOM != p.subject
    ]
    if len(random) > 1:
        random = [r for r in random if r.details == p.details]
    if not random or p.value is None or random[0].value is None:
        return ""
    return signed(p.value - random[0].value, p.unit)
