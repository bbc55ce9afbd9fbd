"""Correspondence of patches, layer by layer: how often a patch is found again in the changed image."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Fold, Heading, Plot, Plots, Section, Text
from equimid.report.figures import Line
from equimid.report.formatting import digits
from equimid.report.sections.layers import (
    CHANCE,
    chance_lines,
    depth_of,
    kind_of,
    kinds_of,
    layer_name,
    points_by_layer,
)
from equimid.report.sections.tables import finite, tabulate, value_range, warnings
from equimid.report.series import Series, legend

__all__ = ["correspondence_section"]

COLOURS = "patch_colours"  # a reference without layers
AMONG = {"image": "the patches of the same image", "images": "the patches of all images"}
TEXT = (
    "Every patch of the transformed image looks for the patch that shows the same place, by its token alone: it takes "
    "the nearest token of the transformed map of the image. Shown is how often this is the right one, in %. Chance is "
    "a guess among all patches that are searched. “Mean colours of patches” searches by colour, without a network: "
    "what it finds needs no features."
)


def correspondence_section(series: Sequence[Series]) -> Section:
    """Plots by layer, one per kind, within an image and among all; by angle for rotations; tables in a fold."""
    shown = [s for s in series if s.of("correspondence")]
    if not shown:
        return Section("correspondence", "Correspondence")
    records = [r for s in shown for r in s.of("correspondence")]
    several = len({r.data for r in records}) > 1
    more = [("chance", CHANCE)] if any("chance" in r.details for r in records) else []
    ringed = any(s.regularised for s in shown)
    blocks: list[Block] = [
        Text(TEXT),
        *warnings(series, "correspondence"),
        legend(shown, "correspondence", ringed=ringed, more=more),
    ]
    tables: list[Block] = [
        Text("Top-1 with its 95 % interval, the number of images and chance; below it how often the partner or one of "
             "the patches around it was found.")
    ]  # fmt: skip
    for among, words in AMONG.items():
        found = [(s, _of(s, among)) for s in shown]
        if not any(of for _, of in found):
            continue
        plots = [*_by_layer(found, among, several), *(_by_angle(found, several) if among == "image" else [])]
        blocks += [Heading(f"Among {words}"), *([Plots(plots)] if plots else [])]
        _, columns = kinds_of([r for _, of in found for r in of], several)
        for s, of in found:
            cells = [(_row(r, s), kind_of(r, several), r) for r in sorted(of, key=depth_of)]
            if cells:
                label = f"Among {words}, {s.label}"
                tables += [Heading(label), tabulate(f"Correspondence. {label}", "Layer", cells, "top1", columns)]
    return Section(
        "correspondence",
        "Correspondence of patches",
        [*blocks, Fold("Every layer and kind in numbers", tables)],
        short="Correspondence",
    )


def _by_layer(found: Sequence[tuple[Series, list[Record]]], among: str, several: bool) -> list[Plot]:
    top1 = [(s, [r for r in of if r.metric == "top1" and "angle" not in r.details]) for s, of in found]
    records = [r for _, of in top1 for r in of]
    plots: list[Plot] = []
    for kind in kinds_of(records, several)[0]:
        of_kind = [(s, [r for r in of if kind_of(r, several) == kind]) for s, of in top1]
        edges = [x for s, of in of_kind if s.subject != COLOURS for x, *_ in points_by_layer(of)]
        lines = [(s, replace(_line(s, of, edges), rings=s.regularised)) for s, of in of_kind]
        drawn = [(s, line) for s, line in lines if line.x]
        if not drawn:
            continue
        said = (f"{s.label} {digits(max(line.y), '%')}" for s, line in drawn)
        chance = chance_lines((r for _, of in of_kind for r in of), edges)
        alt = f"Patches found among {AMONG[among]}, top-1 in % by layer, {kind}; highest: {', '.join(said)}"
        drawings = [*(line for _, line in drawn), *chance]
        name, scale = f"correspondence-{among}-{len(plots)}", value_range(records)
        svg = figures.lines(name, alt + _told(chance), drawings, "layer", y_range=scale)
        plots.append(Plot(kind, svg))
    return plots


def _by_angle(found: Sequence[tuple[Series, list[Record]]], several: bool) -> list[Plot]:
    """A plot for each layer that SER regularises in any run, and for the last."""
    turned = [(s, [r for r in of if r.metric == "top1" and "angle" in r.details]) for s, of in found]
    layers = {r.details.get("layer") for s, of in turned if s.own for r in of}
    wanted = {layer for s, _ in turned for layer in s.regularised} & layers
    wanted |= {max(r.details["layer"] for r in of) for s, of in turned if s.own and of}
    plots: list[Plot] = []
    for data in dict.fromkeys(r.data for _, of in turned for r in of):
        for layer in sorted(wanted):
            at = [
                (s, [r for r in of if r.data == data and (s.subject == COLOURS or r.details["layer"] == layer)])
                for s, of in turned
            ]
            lines = [(s, figures.with_points(s.line, _by_x(of))) for s, of in at]
            drawn = [(s, line) for s, line in lines if len(line.x) > 1]
            if not drawn:
                continue
            said = (f"{s.label} from {digits(line.y[0], '%')} to {digits(line.y[-1], '%')}" for s, line in drawn)
            ringed = " (SER)" if any(layer in s.regularised for s, _ in at) else ""
            caption = f"rotation by angle, layer {layer}{ringed}" + (f", {data}" if several else "")
            chances = sorted(
                {(r.details["angle"], r.details["chance"]) for _, of in at for r in of if "chance" in r.details}
            )
            chance = [replace(CHANCE, x=[x for x, _ in chances], y=[y for _, y in chances])] if chances else []
            svg = figures.lines(
                f"correspondence-angle-{len(plots)}", f"Patches found within the image, {caption}: {', '.join(said)}",
                [*(line for _, line in drawn), *chance], "degrees", y_range=value_range(r for _, of in at for r in of),
            )  # fmt: skip
            plots.append(Plot(caption, svg))
    return plots


def _of(s: Series, among: str) -> list[Record]:
    return [r for r in s.of("correspondence") if r.details.get("among") == among]


def _line(s: Series, records: Iterable[Record], edges: Sequence[float]) -> Line:
    """Colours have no layers: a level line from edge to edge."""
    points = points_by_layer(records)
    if s.subject == COLOURS and points and edges:
        return replace(s.line, x=[min(edges), max(edges)], y=[points[-1][1]] * 2)
    return figures.with_points(s.line, points)


def _by_x(records: Iterable[Record]) -> list[tuple[float, float, float | None, float | None]]:
    """Points over the angle; of two values of one angle the later counts."""
    found = {float(r.details["angle"]): (v, r.low, r.high) for r, v in finite(records)}
    return [(angle, *found[angle]) for angle in sorted(found)]


def _row(r: Record, s: Series) -> str:
    return "any" if s.subject == COLOURS else layer_name(r, s)


def _told(chance: Sequence[Line]) -> str:
    return f"; chance {', '.join(digits(line.y[0], '%') for line in chance)}" if chance else ""
