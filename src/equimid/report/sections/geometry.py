"""Accuracy on turned, mirrored and scaled images."""

from collections.abc import Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Plot, Plots, Section, Text
from equimid.report.figures import Line
from equimid.report.sections.tables import by_data, finite, tabulate, value_range, warnings
from equimid.report.subjects import Series, legend
from equimid.report.words import digits, words

__all__ = ["geometry_section"]

UPRIGHT = "none"  # the kind of the pose that changes nothing


def geometry_section(series: Sequence[Series]) -> Section:
    """A curve over the angle, and a mark for each pose of the other kinds."""
    blocks: list[Block] = []
    for number, (data, records) in enumerate(by_data(series, "geometry").items()):
        name = f"geometry-{number}"
        shown = [s for s in series if s.key in records]
        kinds = dict.fromkeys(str(r.details.get("kind", "all")) for of in records.values() for r in of)
        scale = value_range(r for of in records.values() for r in of)
        plots = [
            _plot(f"{name}-{i}", kind, {s.label: (s, _drawn(records[s.key], kind)) for s in shown}, scale)
            for i, kind in enumerate(kind for kind in kinds if kind != UPRIGHT or len(kinds) == 1)
        ]
        cells = [
            (_pose(r) if kind == UPRIGHT else f"{words(kind)}, {_pose(r)}", s.label, r)
            for kind in kinds
            for s in shown
            for r in _of(records[s.key], kind)
        ]
        table = tabulate(f"Geometry on {data}", "Pose", cells, "top1")
        blocks += [
            Heading(f"On {data}"),
            legend(shown, name),
            Plots(plots, "wide"),
            Fold("Every pose in numbers", [table]),
        ]
    if blocks:
        text = Text(
            "Top-1 in % of a linear probe that was fitted to upright images, on test images in other poses; all plots "
            "on one scale. Over the angle only the disc that turns into itself is shown, at 0 degrees too."
        )
        blocks = [text, *warnings(series, "geometry"), *blocks]
    return Section("geometry", "Turned, mirrored and scaled images", blocks, short="Geometry")


def _plot(name: str, kind: str, found: dict[str, tuple[Series, list[Record]]], scale: tuple[float, float]) -> Plot:
    if kind == "angle":
        lines, said = [], []
        for label, (s, records) in found.items():
            points = sorted((float(r.details["angle"]), v, r.low, r.high) for r, v in finite(records))
            if points:
                lines.append(figures.with_points(s.line, points))
                lowest = min(points, key=lambda p: p[1])
                said.append(f"{label} {digits(points[0][1], '%')} upright, lowest {digits(lowest[1], '%')} at "
                            f"{lowest[0]:g} degrees")  # fmt: skip
        alt = f"Top-1 by angle: {'; '.join(said)}"
        return Plot("by angle", figures.lines(name, alt, lines, "degrees", y_range=scale, width=4.2, x_step=45))
    poses = list(dict.fromkeys(_pose(r) for _, records in found.values() for r in records))
    marks: list[Line] = []
    said = []
    for number, (label, (s, records)) in enumerate(found.items()):
        # beside each other: an interval would hide another's
        aside = 0.5 * ((number + 0.5) / len(found) - 0.5)
        points = [(poses.index(_pose(r)) + aside, v, r.low, r.high) for r, v in finite(records)]
        if points:
            marks.append(replace(figures.with_points(s.line, points), dash="", marker=s.line.marker or "_"))
            said.append(label + " " + ", ".join(f"{digits(v, '%')} at {_pose(r)}" for r, v in finite(records)))
    alt = f"Top-1 by pose, {words(kind)}: {'; '.join(said)}"
    names = [pose.removesuffix(" patches") for pose in poses]
    return Plot(words(kind), figures.lines(name, alt, marks, "", y_range=scale, width=4.2, x_names=names))


def _drawn(records: Sequence[Record], kind: str) -> list[Record]:
    """Of a plot: the curve has its own upright images, cut as the turned ones are; the others need them beside."""
    return [*([] if kind in ("angle", UPRIGHT) else _of(records, UPRIGHT)), *_of(records, kind)]


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [r for r in records if str(r.details.get("kind", "all")) == kind]


def _pose(r: Record) -> str:
    if "pose" in r.details:
        return str(r.details["pose"])
    return f"{r.details['angle']:g} degrees" if "angle" in r.details else "–"
