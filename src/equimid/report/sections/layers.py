"""What sections share that show a value for every layer: points of a line, names of kinds, heads of rows."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from equimid.records import Record
from equimid.report.figures import INK, Line
from equimid.report.formatting import words
from equimid.report.sections.tables import finite
from equimid.report.series import Series

__all__ = ["CHANCE", "chance_lines", "depth_of", "kind_of", "kinds_of", "layer_name", "points_by_layer"]

CHANCE = Line((), (), INK, "", ":")
Point = tuple[float, float, float | None, float | None]  # x, y, low, high


def points_by_layer(records: Iterable[Record]) -> list[Point]:
    """Points of a line over layers; of two values of one layer the later counts."""
    found = {r.details["layer"]: (v, r.low, r.high) for r, v in finite(records) if type(r.details.get("layer")) is int}
    return [(layer, *found[layer]) for layer in sorted(found)]


def chance_lines(records: Iterable[Record], x: Sequence[float]) -> list[Line]:
    """A level line over `x` for every chance that the records have."""
    levels = sorted({r.details["chance"] for r in records if "chance" in r.details})
    return [replace(CHANCE, x=[min(x), max(x)], y=[level] * 2) for level in levels] if x else []


def kind_of(r: Record, several: bool) -> str:
    """The kind of change, the angle of one rotation, and the data where there are `several`."""
    kind = words(str(r.details.get("kind", "all")))
    if "angle" in r.details:
        kind += f" {r.details['angle']:g}°"
    return f"{kind}, {r.data}" if several else kind


def kinds_of(records: Sequence[Record], several: bool) -> tuple[list[str], list[str]]:
    """The kinds, and these with the angles of rotations after them."""
    kinds = list(dict.fromkeys(kind_of(r, several) for r in records if "angle" not in r.details))
    return kinds, [*kinds, *dict.fromkeys(kind_of(r, several) for r in records if "angle" in r.details)]


def depth_of(r: Record) -> tuple[bool, Any]:
    """Records by this are in the order of layers."""
    layer = r.details.get("layer", "–")
    return isinstance(layer, str), layer


def layer_name(r: Record, s: Series) -> str:
    layer = r.details.get("layer", "–")
    return f"{layer} (SER)" if layer in s.regularised else str(layer)
