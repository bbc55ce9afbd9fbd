"""What is measured layer by layer: equivariance, correspondence of patches, and the pose that features keep."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from equimid.records import Record
from equimid.report.blocks import Block, Fold, Plot, Plots, Section, Text, heading
from equimid.report.formatting import metric_name, words
from equimid.report.read_run import Run
from equimid.report.sections.plots import line_plots
from equimid.report.sections.tables import tabulate, warnings
from equimid.report.series import COLOURS, RANDOM, Series, Subjects, finite, grouped, legend, of, only, records_of

__all__ = ["CORRESPONDENCE", "EQUIVARIANCE", "PROBE", "correspondence_section", "equivariance_section", "probe_section"]

EQUIVARIANCE, CORRESPONDENCE, PROBE = "equivariance", "correspondence", "pose_probe"
PLACE = "place"
MEASURES = (PLACE, "retrieval", "retrieval_near", "centred_cosine", "relative_error")  # in a cell, from above
SHARES = ("between_images", "between_positions", "inside_images")
AMONG = {"image": "the patches of the same image", "images": "the patches of all images"}
SOURCES = {"map": "token map", "cls": "class token", "mean": "mean token", "embedding": "final embedding"}
EVERY = "Every layer and kind in numbers"

PLACE_TEXT = (
    "Place compares, patch by patch, the token map of a transformed image with the transformed token map of the image, "
    "after each image's own mean token is taken away. 1: every patch takes its token with it. 0: patch by patch the "
    "two maps have nothing in common. A patch without content of its own does not count, and a map that is the same "
    "everywhere has no place: it is not measurable."
)
REFERENCES = (
    "Each reference shows what else could raise place. “Not carried” leaves the map of the image where it was: it is "
    "high where tokens say where they stand, or where maps are smooth. “Other images” takes the transformed map of "
    "another image: it is high where all maps have something in common. The random network shows what the architecture "
    "gives without training. What place has above all of them comes from training and follows the image."
)
NUMBERS = "Place with its 95 % interval and the number of images; below it other measures. "
OTHER_MEASURES = (
    "Retrieval: how often the partner of a patch is the nearest of all patches of the image, and how often it or a "
    "patch beside it is. Centred cosine: the mean cosine after the mean token of all images is taken away; it is 1 "
    "also for a map that is the same everywhere. Relative error: the distance of the two maps over the spread of the "
    "first."
)
VARIANCE = (
    "The variance of a layer's maps in three parts. Between images: what a whole image shares; place is lost where "
    "this is all. Between positions: what a position has in every image. Inside images: what tells the patches of an "
    "image apart beyond their position."
)
CORRESPONDENCE_TEXT = (
    "Every patch of the transformed image looks for the patch that shows the same place, by its token alone: it takes "
    "the nearest token of the transformed map of the image. Shown is how often this is the right one, in %. Chance is "
    "a guess among all patches that are searched. “Mean colours of patches” searches by colour, without a network: "
    "what it finds needs no features."
)
CORRESPONDENCE_NUMBERS = (
    "Top-1 with its 95 % interval, the number of images and chance; below it how often the partner or one of the "
    "patches around it was found."
)
PROBE_TEXT = (
    "A linear probe reads from the features how the image was turned or mirrored: top-1 in %, by layer. High where the "
    "pose is kept, at chance where it is lost."
)


def equivariance_section(runs: Sequence[Run], series: Sequence[Series]) -> Section:
    """One plot of place per kind of transformation, the fractions of the variance, and tables of layers by kinds."""
    subjects = of(series, EQUIVARIANCE)
    blocks: list[Block] = unmeasured(runs)
    if not subjects and any(run.records for run in runs):
        blocks.append(Text("The records hold no equivariance."))
    if not subjects:
        return Section(EQUIVARIANCE, "Equivariance", blocks)
    kind, share = _panel(subjects, _kind), _panel(subjects, lambda r: metric_name(r.metric))
    measures, shares = only(subjects, lambda r: r.metric not in SHARES), only(subjects, lambda r: r.metric in SHARES)
    place = only(measures, lambda r: r.metric == PLACE and "angle" not in r.details)
    values = [v for r, value in finite(records_of(place)) for v in (value, r.low, r.high) if v is not None]
    blocks += _without_place(runs)
    if any(r.metric == PLACE for r in records_of(measures)):
        blocks += [Text(PLACE_TEXT), Text(REFERENCES)]
    blocks += warnings(subjects)
    plots = line_plots(
        "equivariance", "Place by layer", place, kind, "layer", "",
        note=lambda caption: _not_measurable(only(place, lambda r: kind(r) == caption)),
        y_range=(min(0.0, *values, 0.0) - 0.03, max(1.0, *values, 1.0) + 0.03),
    )  # fmt: skip
    if plots:
        blocks += [_legend(subjects, "layers", place), Plots(plots)]
    if shares:
        shares = [(s, sorted(records, key=lambda r: SHARES.index(r.metric))) for s, records in shares]
        what = "Share of the variance in % by layer"
        plots = line_plots("variance", what, shares, share, "layer", y_range=(-2.0, 102.0))
        tables = _tables("Where the variance of the maps lies", shares, share)
        blocks += [heading("Where the variance of the maps lies"), Text(VARIANCE), *([Plots(plots)] if plots else [])]
        blocks.append(Fold("Every fraction in numbers", tables))
    ranked = [(s, sorted(records, key=lambda r: (*MEASURES, r.metric).index(r.metric))) for s, records in measures]
    text = Text((NUMBERS if place else "") + OTHER_MEASURES)
    blocks.append(Fold(EVERY, [text, *_tables("Equivariance", ranked, kind, PLACE)]))
    return Section(EQUIVARIANCE, "Equivariance", blocks)


def correspondence_section(series: Sequence[Series]) -> Section:
    """Plots by layer, one per kind, within an image and among all; by angle for rotations; tables in a fold."""
    subjects = of(series, CORRESPONDENCE)
    if not subjects:
        return Section(CORRESPONDENCE, "Correspondence")
    kind = _panel(subjects, _kind)
    blocks: list[Block] = [Text(CORRESPONDENCE_TEXT), *warnings(subjects), _legend(subjects, CORRESPONDENCE, subjects)]
    tables: list[Block] = [Text(CORRESPONDENCE_NUMBERS)]
    parts = grouped(subjects, lambda r: r.details.get("among"))
    for among, where in AMONG.items():
        if not (part := parts.get(among)):
            continue
        top1 = _at_all_layers(only(part, lambda r: r.metric == "top1"))
        what = f"Patches found among {where}, top-1 in % by layer"
        plots = line_plots(
            f"{CORRESPONDENCE}-{among}", what, only(top1, lambda r: "angle" not in r.details), kind, "layer"
        )
        if among == "image":
            plots += _by_angle(top1)
        blocks += [heading(f"Among {where}"), *([Plots(plots)] if plots else [])]
        tables += _tables(f"Correspondence among {where}", part, kind, "top1")
    blocks.append(Fold(EVERY, tables))
    return Section(CORRESPONDENCE, "Correspondence of patches", blocks, short="Correspondence")


def probe_section(series: Sequence[Series]) -> Section:
    """A plot for what is read and what it is read from; what is read at one layer alone is in the tables."""
    subjects = of(series, PROBE)
    if not subjects:
        return Section("pose-probe", "Pose probe")
    reading = _panel(subjects, _reading)
    plots = line_plots(
        "pose-probe", "Reading the pose, top-1 in % by layer", subjects, reading, "layer", least=2, y_range=(0.0, 102.0)
    )
    fold = Fold("Every layer in numbers", _tables("Pose probe", subjects, reading, "top1"))
    blocks = [Text(PROBE_TEXT), *warnings(subjects), _legend(subjects, "pose-probe", subjects), Plots(plots), fold]
    return Section("pose-probe", "Pose probe", blocks)


def unmeasured(runs: Sequence[Run]) -> list[Block]:
    """Who has no records yet."""
    return [
        Text(f"is not evaluated yet: equimid evaluate {run.path}", "note", run.name)
        if run.trained_here
        else Text(f"holds no records: equimid evaluate knn linear --model {run.model} --data DATA", "note", run.name)
        for run in runs
        if not run.records
    ]


# --- shared by the three


def _panel(subjects: Subjects, name: Callable[[Record], str]) -> Callable[[Record], str]:
    """The name, with the data where there are several."""
    several = len({r.data for r in records_of(subjects)}) > 1
    return (lambda r: f"{name(r)}, {r.data}") if several else name


def _legend(subjects: Subjects, name: str, drawn: Subjects) -> Block:
    """drawn: the records in the plots; chance is told where they have one."""
    return legend([s for s, _ in subjects], name, True, any("chance" in r.details for r in records_of(drawn)))


def _tables(label: str, subjects: Subjects, column: Callable[[Record], str], first: str = "") -> list[Block]:
    """A table of layers for each subject, angles behind the other columns."""
    columns = dict.fromkeys(column(r) for r in sorted(records_of(subjects), key=lambda r: "angle" in r.details))
    blocks: list[Block] = []
    for s, records in subjects:
        name = f"{label}, {s.label}"
        rows = [(s, sorted(records, key=_depth))]
        blocks += [heading(name), tabulate(name, "Layer", rows, _layer, lambda _, r: column(r), first, list(columns))]
    return blocks


def _depth(r: Record) -> Any:
    return r.details["layer"]


def _layer(s: Series, r: Record) -> str:
    if s.subject == COLOURS:
        return "any"
    return f"{_depth(r)} (SER)" if _depth(r) in s.regularised else str(_depth(r))


def _kind(r: Record) -> str:
    """The kind of change, and the angle of one rotation."""
    angle = f" {r.details['angle']:g}°" if "angle" in r.details else ""
    return words(str(r.details.get("kind", "all"))) + angle


# --- of one each


def _reading(r: Record) -> str:
    """What is read, and from what."""
    source = str(r.details.get("from", "map"))
    return f"{words(str(r.details.get('target', 'pose')))} from the {SOURCES.get(source, words(source))}"


def _at_all_layers(subjects: Subjects) -> Subjects:
    """Colours have no layers: their values at every layer of the others."""
    layers = sorted({_depth(r) for s, records in subjects if s.subject != COLOURS for r in records})
    return [
        (s, [replace(r, details=r.details | {"layer": layer}) for r in records for layer in layers])
        if s.subject == COLOURS
        else (s, records)
        for s, records in subjects
    ]


def _by_angle(subjects: Subjects) -> list[Plot]:
    """A plot for each layer that SER regularises in any run, and for the last."""
    turned = only(subjects, lambda r: "angle" in r.details)
    own = [(s, {_depth(r) for r in records}) for s, records in turned if s.own]
    regularised = {layer for s, _ in own for layer in s.regularised}
    wanted = {layer for _, layers in own for layer in layers & (regularised | {max(layers)})}
    layer = _panel(
        subjects,
        lambda r: f"rotation by angle, layer {_depth(r)}" + " (SER)" * (_depth(r) in regularised),
    )
    shown = [(s, sorted((r for r in records if _depth(r) in wanted), key=_depth)) for s, records in turned]
    return line_plots(
        "correspondence-angle", "Patches found within the image", shown, layer, "angle", least=2, x_label="degrees"
    )


def _without_place(runs: Sequence[Run]) -> list[Block]:
    """Notes on runs that hold equivariance from before place was measured."""
    notes: list[Block] = []
    for run in runs:
        data = {r.metric: r.data for r in run.records if r.evaluation == EQUIVARIANCE}
        if data and PLACE not in data:
            others = f" equivariance --model {run.model} --data {next(iter(data.values()))} --out"
            text = (
                "holds equivariance of an older version: place was not measured, and only the old measures are in the "
                f"table. To measure it: equimid evaluate{'' if run.trained_here else others} {run.path}"
            )
            notes.append(Text(text, "note", run.name))
    return notes


def _not_measurable(subjects: Subjects) -> str:
    """References are not measurable where the network is not."""
    parts = []
    for s, records in subjects:
        layers = [str(_depth(r)) for r in sorted(records, key=_depth) if r.value is None]
        if layers and (s.own or s.subject == RANDOM):
            parts.append(f"{s.label} at layer{'s' * (len(layers) > 1)} {', '.join(layers)}")
    return f"Not measurable: {'; '.join(parts)}." if parts else ""
