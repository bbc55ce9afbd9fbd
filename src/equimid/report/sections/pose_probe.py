"""What is left of the pose in the features, layer by layer."""

from collections.abc import Sequence

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Plot, Plots, Section, Text
from equimid.report.formatting import digits, words
from equimid.report.sections.layers import CHANCE, chance_lines, depth_of, layer_name, points_by_layer
from equimid.report.sections.tables import tabulate, warnings
from equimid.report.series import Series, legend

__all__ = ["pose_probe_section"]

SOURCES = {"map": "token map", "cls": "class token", "mean": "mean token", "embedding": "final embedding"}


def pose_probe_section(series: Sequence[Series]) -> Section:
    """A plot per target and what it is read from, with chance as a line; what is read at one layer alone is in the
    tables."""
    shown = [s for s in series if s.of("pose_probe")]
    if not shown:
        return Section("pose-probe", "Pose probe")
    records = [r for s in shown for r in s.of("pose_probe")]
    several = len({r.data for r in records}) > 1
    plots: list[Plot] = []
    for what in dict.fromkeys(_reading(r, several) for r in records):
        lines, said = [], []
        for s in shown:
            points = points_by_layer(r for r in s.of("pose_probe") if _reading(r, several) == what)
            if points:
                lines.append(figures.with_points(s.line, points))
                best = max(points, key=lambda p: p[1])
                said.append(f"{s.label} {digits(best[1], '%')} at layer {best[0]}")
        edges = [x for line in lines for x in line.x]
        if len(set(edges)) < 2:
            continue
        chance = chance_lines((r for r in records if _reading(r, several) == what), edges)
        lines += chance
        told = f"; chance {', '.join(digits(line.y[0], '%') for line in chance)}" if chance else ""
        alt = f"Reading the {what}, top-1 in % by layer; highest: {', '.join(said)}{told}"
        svg = figures.lines(f"pose-probe-{len(plots)}", alt, lines, "layer", y_range=(0.0, 102.0))
        plots.append(Plot(what, svg))
    tables: list[Block] = []
    for s in shown:
        cells = [(layer_name(r, s), _reading(r, several), r) for r in sorted(s.of("pose_probe"), key=depth_of)]
        tables += [Heading(s.label), tabulate(f"Pose probe, {s.label}", "Layer", cells, "top1")]
    more = [("chance", CHANCE)] if any("chance" in r.details for r in records) else []
    return Section(
        "pose-probe",
        "Pose probe",
        [
            Text(
                "A linear probe reads from the features how the image was turned or mirrored: top-1 in %, by layer. "
                "High where the pose is kept, at chance where it is lost."
            ),
            *warnings(series, "pose_probe"),
            legend(shown, "pose-probe", more=more),
            Plots(plots),
            Fold("Every layer in numbers", tables),
        ],
    )


def _reading(r: Record, several: bool) -> str:
    """What is read, and from what."""
    source = str(r.details.get("from", "map"))
    reading = f"{words(str(r.details.get('target', 'pose')))} from the {SOURCES.get(source, words(source))}"
    return f"{reading}, {r.data}" if several else reading
