"""Equivariance and what is left of the pose, layer by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Plot, Plots, Section, Text
from equimid.report.figures import INK, Line
from equimid.report.folder import Run
from equimid.report.sections.scores import unmeasured
from equimid.report.sections.tables import finite, tabulate, warnings
from equimid.report.subjects import Series, legend
from equimid.report.words import digits, words

__all__ = ["equivariance_section", "readback_section"]

SOURCES = {"map": "token map", "cls": "class token", "mean": "mean token", "embedding": "final embedding"}
CHANCE = Line((), (), INK, "", ":")


def equivariance_section(runs: Sequence[Run], series: Sequence[Series]) -> Section:
    """One plot per kind of transformation, and for each subject a table of layers by kinds."""
    shown = [s for s in series if s.of("equivariance")]
    blocks: list[Block] = [*unmeasured(runs)]
    if not shown:
        if any(run.records for run in runs):
            blocks.append(Text("The records hold no equivariance."))
        return Section("equivariance", "Equivariance", blocks)
    records = [r for s in shown for r in s.of("equivariance")]
    several = len({r.data for r in records}) > 1
    # an angle of a kind is a value of its own, in the table alone
    places = dict.fromkeys(_place(r, several) for r in records if "angle" not in r.details)
    columns = [*places, *dict.fromkeys(_place(r, several) for r in records if "angle" in r.details)]
    drawn = {place: [(s, _by_layer(s, place, several)) for s in shown] for place in places}
    values = [
        v for found in drawn.values() for _, line in found for v in (*line.y, *line.low, *line.high) if v is not None
    ]
    # one scale for all kinds: the eye compares them
    scale = (min(0.0, *values) - 0.03, max(1.0, *values) + 0.03) if values else None
    plots: list[Plot] = []
    for place, found in drawn.items():
        lines = [(s.label, line) for s, line in found if line.x]
        if lines:
            highest = (f"{label} {max(k.y):.3f} at layer {k.x[k.y.index(max(k.y))]}" for label, k in lines)
            alt = f"Centred cosine by layer, {place}; highest: {', '.join(highest)}"
            svg = figures.lines(f"equivariance-{len(plots)}", alt, [k for _, k in lines], "layer", y_range=scale)
            plots.append(Plot(place, svg))
    tables: list[Block] = []
    for s in shown:
        cells = [(_layer(r, s), _place(r, several), r) for r in sorted(s.of("equivariance"), key=_depth)]
        tables += [
            Heading(s.label),
            tabulate(f"Equivariance of {s.label}", "Layer", cells, "centred_cosine", columns),
        ]
    return Section(
        "equivariance",
        "Equivariance",
        [
            *blocks,
            Text(
                "How well the token map of a transformed image agrees with the transformed token map, layer by layer: "
                "the cosine after the mean token is taken away. 1 is equivariant. “Other images” compares maps of "
                "different images and is what chance gives."
            ),
            *warnings(series, "equivariance"),
            legend(shown, "layers", ringed=any(s.regularised for s in shown)),
            Plots(plots),
            Fold(
                "Every layer and kind in numbers",
                [
                    Text("The centred cosine with its 95 % interval and the number of pairs; below it other measures."),
                    *tables,
                ],
            ),
        ],
    )


def readback_section(series: Sequence[Series]) -> Section:
    """A plot per target and what it is read from, with chance as a line; what is read at one layer alone is in the
    tables."""
    shown = [s for s in series if s.of("pose_readback")]
    if not shown:
        return Section("readback", "Pose read-back")
    records = [r for s in shown for r in s.of("pose_readback")]
    several = len({r.data for r in records}) > 1
    plots: list[Plot] = []
    for what in dict.fromkeys(_reading(r, several) for r in records):
        lines, said = [], []
        for s in shown:
            points = _points(r for r in s.of("pose_readback") if _reading(r, several) == what)
            if points:
                lines.append(figures.with_points(s.line, points))
                best = max(points, key=lambda p: p[1])
                said.append(f"{s.label} {digits(best[1], '%')} at layer {best[0]}")
        edges = [x for line in lines for x in line.x]
        if len(set(edges)) < 2:
            continue
        chance = sorted(
            {r.details["chance"] for r in records if "chance" in r.details and _reading(r, several) == what}
        )
        lines += [replace(CHANCE, x=[min(edges), max(edges)], y=[level] * 2) for level in chance]
        told = f"; chance {', '.join(digits(level, '%') for level in chance)}" if chance else ""
        alt = f"Reading the {what}, top-1 in % by layer; highest: {', '.join(said)}{told}"
        svg = figures.lines(f"readback-{len(plots)}", alt, lines, "layer", y_range=(0.0, 102.0))
        plots.append(Plot(what, svg))
    tables: list[Block] = []
    for s in shown:
        cells = [(_layer(r, s), _reading(r, several), r) for r in sorted(s.of("pose_readback"), key=_depth)]
        tables += [Heading(s.label), tabulate(f"Pose read-back, {s.label}", "Layer", cells, "top1")]
    more = [("chance", CHANCE)] if any("chance" in r.details for r in records) else []
    return Section(
        "readback",
        "Pose read-back",
        [
            Text(
                "A linear probe reads from the features how the image was turned or mirrored: top-1 in %, by layer. "
                "High where the pose is kept, at chance where it is lost."
            ),
            *warnings(series, "pose_readback"),
            legend(shown, "readback", more=more),
            Plots(plots),
            Fold("Every layer in numbers", tables),
        ],
    )


def _by_layer(s: Series, place: str, several: bool) -> Line:
    """The subject's line in the plot of that kind."""
    points = _points(
        r
        for r in s.of("equivariance")
        if r.metric == "centred_cosine" and "angle" not in r.details and _place(r, several) == place
    )
    return replace(figures.with_points(s.line, points), rings=s.regularised)


def _points(records: Iterable[Record]) -> list[tuple[int, float, float | None, float | None]]:
    """By layer; of two values of one layer the later counts."""
    found = {r.details["layer"]: (v, r.low, r.high) for r, v in finite(records) if type(r.details.get("layer")) is int}
    return [(layer, *found[layer]) for layer in sorted(found)]


def _place(r: Record, several: bool) -> str:
    place = words(str(r.details.get("kind", "all")))
    if "angle" in r.details:
        place += f" {r.details['angle']:g}°"
    return f"{place}, {r.data}" if several else place


def _reading(r: Record, several: bool) -> str:
    """What is read, and from what."""
    source = str(r.details.get("from", "map"))
    reading = f"{words(str(r.details.get('target', 'pose')))} from the {SOURCES.get(source, words(source))}"
    return f"{reading}, {r.data}" if several else reading


def _depth(r: Record) -> tuple[bool, Any]:
    layer = r.details.get("layer", "–")
    return isinstance(layer, str), layer


def _layer(r: Record, s: Series) -> str:
    layer = r.details.get("layer", "–")
    return f"{layer} (SER)" if layer in s.regularised else str(layer)
