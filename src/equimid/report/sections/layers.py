"""What is measured layer by layer: equivariance, correspondence of patches, and the pose that features keep."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from equimid.records import Record, Subject
from equimid.report.blocks import Block, Figure, Figures, Group, Text, explained
from equimid.report.formatting import gathered, metric_name
from equimid.report.read_run import Run
from equimid.report.sections.scores import unmeasured
from equimid.report.series import Point, grouped
from equimid.report.views import curves, legend, panel, pivot, warnings

__all__ = ["correspondence", "equivariance", "pose_probe"]

PLACE = "place"
MEASURES = (PLACE, "retrieval", "retrieval_near", "centred_cosine", "relative_error")  # in a cell, from above
PARTS = ("between_images", "between_positions", "inside_images")  # of the variance
AMONG = {"image": "the patches of the same image", "images": "the patches of all images"}
SOURCES = {"map": "token map", "cls": "class token", "mean": "mean token", "embedding": "final embedding"}
EVERY = "Every layer and kind in numbers"


def equivariance(runs: Sequence[Run], points: Sequence[Point]) -> list[Block]:
    """One plot of place per kind of transformation, the parts of the variance, and tables of layers by kinds."""
    kind, part = panel(points, _kind), panel(points, metric_name)
    measures = [p for p in points if p.metric not in PARTS]
    place = [p for p in measures if p.metric == PLACE and "angle" not in p.details]
    values = [v for p in place if p.value is not None for v in (p.value, p.low, p.high) if v is not None]
    lines = curves(
        "equivariance", "Place by layer", place, kind, "layer", "", note=_not_measurable,
        y_range=(min(0.0, *values, 0.0) - 0.03, max(1.0, *values, 1.0) + 0.03),
    )  # fmt: skip
    parts = _ranked([p for p in points if p.metric in PARTS], PARTS)
    title = "Where the variance of the maps lies"
    variance = curves("variance", "Share of the variance in % by layer", parts, part, "layer", y_range=(-2.0, 102.0))
    fractions = _every("Every fraction in numbers", title, parts, part)
    texts = ["place", "references"] if any(p.metric == PLACE for p in measures) else []
    numbers = ["place, numbers", "other measures"] if place else ["other measures"]
    return [
        *unmeasured(runs, points, "equivariance"),
        *_without_place(runs),
        *map(explained, texts),
        *warnings(points),
        legend("layers", place if lines else []),
        Figures(lines),
        Group(title, [explained("variance"), Figures(variance), fractions]),
        _every(EVERY, "Equivariance", _ranked(measures, MEASURES), kind, PLACE, explained(*numbers)),
    ]


def correspondence(points: Sequence[Point]) -> list[Block]:
    """Plots by layer, one per kind, within an image and among all; by angle for rotations; tables in a fold."""
    kind = panel(points, _kind)
    blocks: list[Block] = [explained("correspondence"), *warnings(points), legend("correspondence", points)]
    tables: list[Block] = [explained("correspondence, numbers")]
    for among, where in AMONG.items():
        part = [p for p in points if p.detail("among") == among]
        top1 = _at_all_layers([p for p in part if p.metric == "top1"])
        what = f"Patches found among {where}, top-1 in % by layer"
        whole = [p for p in top1 if "angle" not in p.details]
        plots = curves(f"correspondence-{among}", what, whole, kind, "layer")
        plots += _by_angle(top1) if among == "image" else []
        blocks.append(Group(f"Among {where}", [Figures(plots)]))
        tables += _tables(f"Correspondence among {where}", part, kind, "top1")
    return [*blocks, Group(EVERY, tables, folded=True)]


def pose_probe(points: Sequence[Point]) -> list[Block]:
    """A plot for what is read and what it is read from; what is read at one layer alone is in the tables."""
    reading = panel(points, _reading)
    what = "Reading the pose, top-1 in % by layer"
    plots = curves("pose-probe", what, points, reading, "layer", least=2, y_range=(0.0, 102.0))
    return [
        explained("pose probe"),
        *warnings(points),
        legend("pose-probe", points),
        Figures(plots),
        _every("Every layer in numbers", "Pose probe", points, reading, "top1"),
    ]


def _every(
    title: str, label: str, points: Sequence[Point], column: Callable[[Point], str], first: str = "", *texts: Text
) -> Group:
    """All numbers, folded."""
    return Group(title, [*texts, *_tables(label, points, column, first)], folded=True)


def _tables(label: str, points: Sequence[Point], column: Callable[[Point], str], first: str = "") -> list[Block]:
    """A table of layers for each subject, angles behind the other columns."""
    columns = list(dict.fromkeys(column(p) for p in sorted(points, key=lambda p: "angle" in p.details)))
    tables: list[Block] = []
    for s, own in grouped(points, lambda p: p.series).items():
        name = f"{label}, {s.label}"
        by_layer = sorted(own, key=_depth)
        table = pivot(name, "Layer", by_layer, _layer, column, lambda cell: gathered(cell, first), columns=columns)
        tables.append(Group(name, [table]))
    return tables


def _ranked(points: Sequence[Point], metrics: Sequence[str]) -> list[Point]:
    """Each subject's points in the order of these metrics, others last."""
    ranked = [sorted(own, key=lambda p: (*metrics, p.metric).index(p.metric)) for own in
              grouped(points, lambda p: p.series).values()]  # fmt: skip
    return [p for own in ranked for p in own]


def _depth(p: Point) -> float:
    return float(p.details["layer"])


def _layer(p: Point) -> str:
    if p.subject == Subject.PATCH_COLOURS:
        return "any"
    return f"{p.details['layer']}" + " (SER)" * (p.details["layer"] in p.series.regularised)


def _kind(r: Record) -> str:
    """The kind of change, and the angle of one rotation."""
    angle = f" {r.details['angle']:g}°" if "angle" in r.details else ""
    return str(r.details.get("kind", "all")).replace("_", " ") + angle


def _reading(r: Record) -> str:
    """What is read, and from what."""
    source = str(r.details.get("from", "map"))
    return f"{r.details.get('target', 'pose')} from the {SOURCES.get(source, source)}".replace("_", " ")


def _at_all_layers(points: Sequence[Point]) -> list[Point]:
    """Colours have no layers: their values at every layer of the others."""
    layers = sorted({p.details["layer"] for p in points if p.subject != Subject.PATCH_COLOURS})
    return [
        replace(p, details=p.details | {"layer": layer})
        for p in points
        for layer in (layers if p.subject == Subject.PATCH_COLOURS else [p.details["layer"]])
    ]


def _by_angle(points: Sequence[Point]) -> list[Figure]:
    """A plot for each layer that SER regularises in any run, and for the last."""
    turned = [p for p in points if "angle" in p.details]
    of_runs = grouped([p for p in turned if p.series.own], lambda p: p.series)
    regularised = {layer for s in of_runs for layer in s.regularised}
    layers = [{p.details["layer"] for p in own} for own in of_runs.values()]
    wanted = {layer for own in layers for layer in own & (regularised | {max(own)})}
    marked = {layer: f"{layer}" + " (SER)" * (layer in regularised) for layer in wanted}
    caption = panel(points, lambda p: f"rotation by angle, layer {marked[p.details['layer']]}")
    # by layer, since the plots come in the order of the points, and the subjects of each stay in theirs
    shown = sorted([p for p in turned if p.details["layer"] in wanted], key=_depth)
    what = "Patches found within the image"
    return curves("correspondence-angle", what, shown, caption, "angle", least=2, x_label="degrees")


def _without_place(runs: Sequence[Run]) -> list[Block]:
    """Notes on runs that hold equivariance from before place was measured."""
    notes: list[Block] = []
    for run in runs:
        data = {r.metric: r.data for r in run.records if r.evaluation == "equivariance"}
        if data and PLACE not in data:
            others = f" equivariance --model {run.model} --data {next(iter(data.values()))} --out"
            text = (
                "holds equivariance of an older version: place was not measured, and only the old measures are in the "
                f"table. To measure it: equimid evaluate{'' if run.trained_here else others} {run.path}"
            )
            notes.append(Text(text, "note", run.name))
    return notes


def _not_measurable(points: Sequence[Point]) -> str:
    """References are not measurable where the network is not."""
    parts = []
    for s, own in grouped(
        [p for p in points if p.series.own or p.subject == Subject.RANDOM], lambda p: p.series
    ).items():
        if layers := [str(p.details["layer"]) for p in sorted(own, key=_depth) if p.value is None]:
            parts.append(f"{s.label} at layer{'s' * (len(layers) > 1)} {', '.join(layers)}")
    return f"Not measurable: {'; '.join(parts)}." if parts else ""
