"""Plots as inline SVG strings. matplotlib draws them; the page lends its text colour and its font."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

__all__ = ["INK", "Line", "colour_and_marker", "dots", "lines", "swatch", "thin"]

INK = "#010203"  # drawn so, shown as currentColor: legible on light and on dark
# Okabe and Ito's colours for every kind of colour vision, those with the best contrast first
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")  # five against six colours: thirty pairs before one returns
POINTS = 240  # a curve is thinned to about so many
NARROW = 2.5  # inches: below that, lines and marks are finer and numbers fewer

RC = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9,
    "text.parse_math": False,  # a dollar in a run's name is a dollar
    "text.color": INK, "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.color": INK, "grid.alpha": 0.14, "grid.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.linewidth": 1.5, "lines.markersize": 5,
}  # fmt: skip
# this file's settings on matplotlib's defaults, whatever the user's own are
_styled = matplotlib.style.context(["default", RC])

DRAWN = ("d", "x", "y", "transform", "points")  # attributes that are coordinates
_DIGITS = re.compile(r"(\.\d\d)\d+")


@dataclass(frozen=True)
class Line:
    """One line of a plot; `low` and `high` are its intervals, `rings` the x values to mark."""

    label: str = ""
    x: Sequence[float] = ()
    y: Sequence[float] = ()
    colour: str = INK
    marker: str = ""
    dash: str = "-"
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    rings: Sequence[float] = ()


def colour_and_marker(index: int) -> tuple[str, str]:
    """The look of run number `index`, the same in every plot."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about POINTS points, the lowest and the highest of each stretch: a spike survives."""
    if len(x) <= POINTS:
        return list(x), list(y)
    size = math.ceil(2 * len(x) / POINTS)
    kept = {0, len(x) - 1}
    for start in range(0, len(x), size):
        stretch = range(start, min(start + size, len(x)))
        kept |= {min(stretch, key=y.__getitem__), max(stretch, key=y.__getitem__)}
    order = sorted(kept)
    return [x[i] for i in order], [y[i] for i in order]


@_styled
def lines(
    name: str,
    alt: str,
    series: Sequence[Line],
    x_label: str,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    height: float = 2.1,
    width: float = 3.4,
    x_names: Sequence[str] = (),
    x_step: float | None = None,
) -> str:
    """Lines over steps, layers or what else `x_label` says. `name` is unique on the page: the SVG's ids depend on it.

    x_names: of x = 0, 1, ..., where x is no number
    x_step: between numbers of x; by default what fits
    height, width: inches
    """
    if width < NARROW:
        # small ones are many, and fitting the margins would take longer than drawing
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((0.17, 0.16, 0.8, 0.8))
    else:
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    for index, line in enumerate(series):
        every = 1 if len(line.x) <= 32 else len(line.x) // 5
        look: dict[str, Any] = {"color": line.colour, "linestyle": line.dash}
        if line.dash != "-" or len(line.x) > 100:
            look["linewidth"] = 1.1
        if width < NARROW:
            look |= {"linewidth": 1.1, "markersize": 3.5}
        bars = [bar for bar in zip(line.x, line.low, line.high, strict=False) if None not in bar]
        if bars:
            axes.vlines(*zip(*bars, strict=True), color=line.colour, linewidth=1, alpha=0.6)
        # markers of several runs do not start at the same place, or one would hide the other
        start = index * every // max(1, len(series)) if every > 1 else 0
        axes.plot(line.x, line.y, marker=line.marker or None, markevery=(start, every), **look)
        ringed = [point for point in zip(line.x, line.y, strict=True) if point[0] in line.rings]
        _rings(axes, ringed, line.colour, 12)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.set_xlabel(x_label)
    if width < NARROW and not log:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    # not matplotlib's own: a logarithmic axis would write its numbers as formulas
    axes.yaxis.set_major_formatter(FuncFormatter(_number))
    if x_names:
        axes.set_xticks(range(len(x_names)), [_short(x, 14) for x in x_names])
        axes.set_xlim(-0.5, len(x_names) - 0.5)
        axes.grid(axis="x", visible=False)
        return _svg(figure, name, alt)
    bins = 8 if axes.get_xlim()[1] < 100 else 6  # long numbers need room
    fitting = MaxNLocator(bins, steps=[1, 2, 5, 10], integer=True)
    axes.xaxis.set_major_locator(fitting if x_step is None else MultipleLocator(x_step))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    return _svg(figure, name, alt)


@_styled
def dots(name: str, alt: str, rows: Sequence[Line], x_label: str) -> str:
    """One row per subject, first on top: the only value of its line, its interval, and rings for what it is the mean
    of."""
    figure = Figure(figsize=(4.2, 0.6 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(rows):
        interval = [x for x in (*row.low, *row.high) if x is not None]
        if len(interval) == 2:
            axes.plot(interval, [y, y], color=row.colour, linewidth=2, solid_capstyle="round")
        _rings(axes, [(x, y) for x in row.rings], row.colour, 6, alpha=0.75)
        axes.plot(row.y, [y], row.marker or "x", color=row.colour)
    axes.set_yticks(range(len(rows)), [_short(row.label) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
    return _svg(figure, name, alt)


@_styled
def swatch(name: str, alt: str, line: Line) -> str:
    """A piece of line for a legend."""
    figure = Figure(figsize=(0.5, 0.2))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    axes.plot([0, 1, 2], [0, 0, 0], color=line.colour, linestyle=line.dash, marker=line.marker, markevery=[1])
    if line.rings:
        _rings(axes, [(1, 0)], line.colour, 11)
    axes.set(xlim=(0, 2), ylim=(-1, 1))
    return _svg(figure, name, alt)


def _rings(axes: Axes, points: Sequence[tuple[float, float]], colour: str, size: float, **look: Any) -> None:
    for x, y in points:
        axes.plot([x], [y], "o", markersize=size, markerfacecolor="none", markeredgecolor=colour, **look)


def _number(value: float, _: int | None = None) -> str:
    return f"{value:,.0f}".replace("-", "−") if abs(value) >= 10_000 else f"{value:g}".replace("-", "−")


def _short(label: str, length: int = 26) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an element of a page: no style, fixed size or id of its own that could meet another's."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # its ids are hashes, unlike those of other figures
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    used = set(re.findall(rb'(?:"|url\()#([\w-]+)', buffer.getvalue()))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            # hundredths of a point are not seen, and half of the page would be digits
            key.rpartition("}")[2]: _DIGITS.sub(r"\1", value) if key in DRAWN else value.replace(INK, "currentColor")
            for key, value in element.attrib.items()
            if key != "id" or value.encode() in used
        }
        for child in list(element):
            if child.tag.endswith(("}metadata", "}style")):
                element.remove(child)
    view = root.attrib["viewBox"]
    root.attrib = {"viewBox": view, "role": "img", "aria-label": alt}
    return ET.tostring(root, encoding="unicode")
