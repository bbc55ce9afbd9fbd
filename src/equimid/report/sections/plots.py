"""Plots of lines, one for each subject, with a description that names their points."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Plot
from equimid.report.figures import Line
from equimid.report.formatting import digits
from equimid.report.series import CHANCE, Series, Subjects, finite, grouped, only, records_of

__all__ = ["line_plot", "line_plots", "value_range"]

SPOKEN = 6  # points of a line that its description names; of more the first, the last, the lowest and the highest


def value_range(records: Iterable[Record]) -> tuple[float, float]:
    """One scale in percent from 0 for several plots: the eye compares them."""
    highest = max((max(value, r.high or 0.0) for r, value in finite(records)), default=100.0)
    return 0.0, min(100.0, 10.0 * math.ceil(highest / 10 + 0.2)) + 2.0


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
        plot_name = f"{name}-{len(plots)}"
        plots.append(line_plot(plot_name, what, caption, lines, unit, chance, note(caption), **look))
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
