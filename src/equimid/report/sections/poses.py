"""Values by pose: a plot for each kind of pose, and a table of all."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Plot, Plots
from equimid.report.figures import Line
from equimid.report.formatting import digits, words
from equimid.report.sections.tables import finite, tabulate, value_range
from equimid.report.series import Series, legend

__all__ = ["UPRIGHT", "pose_blocks"]

UPRIGHT = "none"  # the kind of the pose that changes nothing

Found = Mapping[tuple[str, str], Sequence[Record]]


def pose_blocks(name: str, label: str, what: str, shown: Sequence[Series], records: Found) -> list[Block]:
    """A curve over the angle, a mark for each pose of the other kinds, all on one scale, and the numbers.

    name:    begins the plots' ids
    what:    is measured: "Top-1"
    records: of the subjects shown, of one metric in percent; their details have `kind` and `pose`
    """
    kinds = dict.fromkeys(_kind(r) for of in records.values() for r in of)
    scale = value_range(r for of in records.values() for r in of)
    plots = [
        _plot(f"{name}-{i}", what, kind, {s.label: (s, _drawn(records[s.key], kind)) for s in shown}, scale)
        for i, kind in enumerate(kind for kind in kinds if kind != UPRIGHT or len(kinds) == 1)
    ]
    cells = [
        (_pose(r) if kind == UPRIGHT else f"{words(kind)}, {_pose(r)}", s.label, r)
        for kind in kinds
        for s in shown
        for r in _of(records[s.key], kind)
    ]
    table = tabulate(label, "Pose", cells, cells[0][2].metric)
    return [legend(shown, name), Plots(plots, "wide"), Fold("Every pose in numbers", [table])]


def _plot(
    name: str, what: str, kind: str, found: dict[str, tuple[Series, list[Record]]], scale: tuple[float, float]
) -> Plot:
    if kind == "angle":
        lines, said = [], []
        for label, (s, records) in found.items():
            points = sorted((float(r.details["angle"]), v, r.low, r.high) for r, v in finite(records))
            if points:
                lines.append(figures.with_points(s.line, points))
                lowest = min(points, key=lambda p: p[1])
                said.append(f"{label} {digits(points[0][1], '%')} upright, lowest {digits(lowest[1], '%')} at "
                            f"{lowest[0]:g} degrees")  # fmt: skip
        alt = f"{what} by angle: {'; '.join(said)}"
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
    alt = f"{what} by pose, {words(kind)}: {'; '.join(said)}"
    names = [pose.removesuffix(" patches") for pose in poses]
    return Plot(words(kind), figures.lines(name, alt, marks, "", y_range=scale, width=4.2, x_names=names))


def _drawn(records: Sequence[Record], kind: str) -> list[Record]:
    """Of a plot: the curve has its own upright images, cut as the turned ones are; the others need them beside."""
    return [*([] if kind in ("angle", UPRIGHT) else _of(records, UPRIGHT)), *_of(records, kind)]


def _of(records: Sequence[Record], kind: str) -> list[Record]:
    return [r for r in records if _kind(r) == kind]


def _kind(r: Record) -> str:
    return str(r.details.get("kind", "all"))


def _pose(r: Record) -> str:
    if "pose" in r.details:
        return str(r.details["pose"])
    return f"{r.details['angle']:g} degrees" if "angle" in r.details else "–"
