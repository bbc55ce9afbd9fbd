"""Equivariance, layer by layer: place with its references, other measures, and where the variance of maps lies."""

from collections.abc import Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Note, Plot, Plots, Row, Section, Table, Text
from equimid.report.figures import Line
from equimid.report.formatting import digits, entry, metric_name
from equimid.report.read_run import Run
from equimid.report.sections.layers import depth_of, kind_of, kinds_of, layer_name, points_by_layer
from equimid.report.sections.scores import unmeasured
from equimid.report.sections.tables import tabulate, warnings
from equimid.report.series import Series, legend

__all__ = ["equivariance_section"]

MEASURES = ("place", "retrieval", "retrieval_near", "centred_cosine", "relative_error")  # in a cell, from above
SHARES = ("between_images", "between_positions", "inside_images")
PLACE = (
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
NUMBERS = "Place with its 95 % interval and the number of images; below it other measures."
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


def equivariance_section(runs: Sequence[Run], series: Sequence[Series]) -> Section:
    """One plot of place per kind of transformation, the fractions of the variance, and tables of layers by kinds."""
    shown = [s for s in series if s.of("equivariance")]
    blocks: list[Block] = [*unmeasured(runs)]
    if not shown:
        if any(run.records for run in runs):
            blocks.append(Text("The records hold no equivariance."))
        return Section("equivariance", "Equivariance", blocks)
    blocks += [_not_placed(run) for run in runs if _is_old(run)]
    records = [r for s in shown for r in s.of("equivariance")]
    several = len({r.data for r in records}) > 1
    placed = any(r.metric == "place" for r in records)
    if placed:
        blocks += [Text(PLACE), Text(REFERENCES)]
    blocks += warnings(series, "equivariance")
    if plots := _place_plots(shown, several):
        blocks += [legend(shown, "layers", ringed=any(s.regularised for s in shown)), Plots(plots)]
    blocks += _variance(shown, several)
    _, columns = kinds_of([r for r in records if r.metric not in SHARES], several)
    tables: list[Block] = [Text(f"{NUMBERS} {OTHER_MEASURES}" if placed else OTHER_MEASURES)]
    for s in shown:
        found = sorted(
            (r for r in s.of("equivariance") if r.metric not in SHARES), key=lambda r: (depth_of(r), _rank(r))
        )
        cells = [(layer_name(r, s), kind_of(r, several), r) for r in found]
        if cells:
            tables += [
                Heading(s.label),
                tabulate(f"Equivariance of {s.label}", "Layer", cells, "place", columns),
            ]
    return Section("equivariance", "Equivariance", [*blocks, Fold("Every layer and kind in numbers", tables)])


def _is_old(run: Run) -> bool:
    """Whether it holds equivariance that was measured before place was."""
    found = [r for r in run.records if r.evaluation == "equivariance"]
    return bool(found) and all(r.metric != "place" for r in found)


def _not_placed(run: Run) -> Note:
    data = next(r.data for r in run.records if r.evaluation == "equivariance")
    command = (
        f"equimid evaluate {run.path}"
        if run.trained_here
        else f"equimid evaluate equivariance --model {run.model} --data {data} --out {run.path}"
    )
    return Note(
        "holds equivariance of an older version: place was not measured, and only the old measures are in the table. "
        f"To measure it: {command}",
        run.name,
    )


def _place_plots(shown: Sequence[Series], several: bool) -> list[Plot]:
    """One for each kind, all on one scale: the eye compares them. An angle of a rotation is in the table alone."""
    placed = [(s, [r for r in s.of("equivariance") if r.metric == "place" and "angle" not in r.details]) for s in shown]
    kinds, _ = kinds_of([r for _, records in placed for r in records], several)
    drawn = {
        kind: [(s, [r for r in records if kind_of(r, several) == kind]) for s, records in placed] for kind in kinds
    }
    lines = {kind: [(s, _line(s, records)) for s, records in found] for kind, found in drawn.items()}
    values = [
        v for found in lines.values() for _, line in found for v in (*line.y, *line.low, *line.high) if v is not None
    ]
    plots: list[Plot] = []
    for kind, found in lines.items():
        known = [(s.label, line) for s, line in found if line.x]
        # references are not measurable where the network is not
        networks = [(s, records) for s, records in drawn[kind] if s.own or s.subject == "random"]
        missing = "; ".join(text for s, records in networks if (text := _not_measurable(s, records)))
        if known:
            highest = (f"{label} {digits(max(k.y), '')} at layer {k.x[k.y.index(max(k.y))]}" for label, k in known)
            alt = f"Place by layer, {kind}; highest: {', '.join(highest)}"
            scale = (min(0.0, *values) - 0.03, max(1.0, *values) + 0.03)
            svg = figures.lines(f"equivariance-{len(plots)}", alt, [line for _, line in known], "layer", y_range=scale)
            plots.append(Plot(kind, svg, f"Not measurable: {missing}." if missing else ""))
    return plots


def _rank(r: Record) -> int:
    return MEASURES.index(r.metric) if r.metric in MEASURES else len(MEASURES)


def _line(s: Series, records: Sequence[Record]) -> Line:
    return replace(figures.with_points(s.line, points_by_layer(records)), rings=s.regularised)


def _not_measurable(s: Series, records: Sequence[Record]) -> str:
    layers = [str(r.details.get("layer")) for r in sorted(records, key=depth_of) if r.value is None]
    return f"{s.label} at layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}" if layers else ""


def _variance(shown: Sequence[Series], several: bool) -> list[Block]:
    """A plot for each fraction of the variance, and a table of them."""
    found = [(s, [r for r in s.of("equivariance") if r.metric in SHARES]) for s in shown]
    found = [(s, records) for s, records in found if records]
    if not found:
        return []
    plots: list[Plot] = []
    for fraction in SHARES:
        for data in dict.fromkeys(r.data for _, records in found for r in records):
            points = [
                (s, points_by_layer(r for r in records if (r.metric, r.data) == (fraction, data)))
                for s, records in found
            ]
            lines = [(s, replace(figures.with_points(s.line, p), rings=s.regularised)) for s, p in points if p]
            if not lines:
                continue
            caption = metric_name(fraction) + (f", {data}" if several else "")
            said = (f"{s.label} {digits(line.y[-1], '%')} at layer {line.x[-1]}" for s, line in lines)
            alt = f"Share of the variance in % by layer, {caption}; last: {', '.join(said)}"
            svg = figures.lines(f"variance-{len(plots)}", alt, [k for _, k in lines], "layer", y_range=(-2.0, 102.0))
            plots.append(Plot(caption, svg))
    tables: list[Block] = []
    for s, records in found:
        rows: dict[str, dict[str, Record]] = {}
        for r in sorted(records, key=depth_of):
            head = layer_name(r, s) + (f", {r.data}" if several else "")
            rows.setdefault(head, {})[r.metric] = r
        cells = [Row(head, [[entry(of[m])] if m in of else [] for m in SHARES]) for head, of in rows.items()]
        label = f"Where the variance of {s.label} lies"
        tables += [Heading(s.label), Table(label, "Layer", [metric_name(m) for m in SHARES], cells)]
    blocks: list[Block] = [Heading("Where the variance of the maps lies"), Text(VARIANCE)]
    blocks += [Plots(plots)] if plots else []
    return [*blocks, Fold("Every fraction in numbers", tables)]
