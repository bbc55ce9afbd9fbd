"""The parts of the page that show what was measured: each arranges records or curves for the template.

References. "random" (random weights) and "pixels" do not depend on the training. "random" is shown once for
all runs that agree in backbone shape, evaluation settings, data, seed and number of images, else once per
group of such runs; "pixels" likewise, where of the shape only the image size counts. "mismatched" (other
images seen by the same network) depends on the weights and is shown for every run. A difference is always
taken to the run's own random network.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.figures import INK, Dot, Line
from equimid.report.folder import Run

__all__ = [
    "all_series",
    "curve_groups",
    "equivariance",
    "evaluations",
    "legend",
    "measured",
    "pictures",
    "plain",
]

WORDS = {
    "random": "random network",
    "pixels": "raw pixels",
    "mismatched": "other images",
    "knn": "kNN",
    "linear": "linear",
    "top1": "top-1",
    "top5": "top-5",
    "centred_cosine": "centred cosine",
}
PANELS = {"loss": "Loss", "gradient": "Gradient norm", "feature": "Features", "": "Schedule and speed"}
APART = ("equivariance", "feature_maps", "training")  # evaluations with sections of their own
# what a reference depends on, of the backbone's settings; pixels have no network
SHAPE = ("name", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "cls_layer")
PIXELS = ("image_size",)


@dataclass(frozen=True)
class Series:
    """One subject as the page shows it: a run's backbone, or a reference and the run it is taken from."""

    label: str
    subject: str
    run: Run
    line: Line

    @property
    def key(self) -> tuple[str, str]:
        """A run may be called what a reference is called: the label alone is not enough."""
        return self.subject, self.label

    @property
    def records(self) -> list[Record]:
        return [r for r in self.run.records if r.subject == self.subject]

    @property
    def regularised(self) -> tuple[Any, ...]:
        """The layers that SER acted on in this subject."""
        return self.run.ser_layers if self.subject == "backbone" else ()

    def of(self, evaluation: str) -> list[Record]:
        return [r for r in self.records if r.evaluation == evaluation]


def all_series(runs: Sequence[Run]) -> list[Series]:
    """Backbones first, then every run's mismatched pairs, then the references (by the rule above)."""
    series, many = [], len(runs) > 1
    for subject, dash in (("backbone", "-"), ("mismatched", ":")):
        for run in runs:
            colour, marker = figures.colour_and_marker(run.index)
            label = run.name if dash == "-" else f"other images, {run.name}" if many else "other images"
            line = Line((), (), colour, marker if dash == "-" else "", dash)
            if dash == "-" or any(r.subject == subject for r in run.records):
                series.append(Series(label, subject, run, line))
    groups: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        for subject in dict.fromkeys(r.subject for r in run.records):
            if subject in ("backbone", "mismatched"):
                continue
            measured = sorted({(r.evaluation, r.data, r.seed, r.n) for r in run.records if r.subject == subject})
            shape = [run.setting(f"backbone.{k}") for k in (PIXELS if subject == "pixels" else SHAPE)]
            key = [shape, run.config.get("evaluation"), measured]
            groups.setdefault(subject, {}).setdefault(json.dumps(key, default=str), []).append(run)
    for subject in sorted(groups, key=lambda s: list(WORDS).index(s) if s in WORDS else len(WORDS)):
        for i, group in enumerate(groups[subject].values()):
            label = WORDS.get(subject, subject)
            if len(groups[subject]) > 1:
                label += f" ({', '.join(run.name for run in group)})"
            line = Line((), (), INK, "xP*d"[i % 4] if len(groups[subject]) > 1 else "", "--")
            series.append(Series(label, subject, group[0], line))
    return series


def evaluations(series: Sequence[Series]) -> list[dict[str, Any]]:
    """One table per data set: subjects by metrics, and one dot plot per metric."""
    scored = {s.key: [r for r in s.records if r.evaluation not in APART] for s in series}
    tables: list[dict[str, Any]] = []
    for data in dict.fromkeys(r.data for records in scored.values() for r in records):
        cells: dict[tuple[str, str, str], dict[tuple[str, str], list[Record]]] = {}
        for subject, records in scored.items():
            for r in records:
                if r.data == data:
                    cells.setdefault((r.evaluation, r.metric, r.unit), {}).setdefault(subject, []).append(r)
        rows = [
            {
                "series": s,
                "cells": [
                    [_cell(r, s.run, named=len(column[s.key]) > 1) for r in column.get(s.key, [])]
                    for column in cells.values()
                ],
            }
            for s in series
            if any(s.key in column for column in cells.values())
        ]
        plots: list[dict[str, Any]] = []
        for (evaluation, metric, unit), column in cells.items():
            points = [
                Dot(s.label, r.value, r.low, r.high, s.line.colour, s.line.marker or "x")
                for s in series
                for r in column.get(s.key, [])
                if r.value is not None and math.isfinite(r.value)
            ]
            if len(points) > 1:
                heading, name = _title(evaluation, metric), f"evaluation-{len(tables)}-{len(plots)}"
                alt = f"{heading}: " + ", ".join(f"{p.label} {_digits(p.value, unit)}" for p in points)
                plots.append({"caption": heading, "svg": figures.dots(name, alt, points, unit or metric)})
        columns = [_title(evaluation, metric) for evaluation, metric, _ in cells]
        tables.append({"data": data, "columns": columns, "rows": rows, "plots": plots})
    return tables


def equivariance(series: Sequence[Series]) -> dict[str, Any]:
    """One plot per kind of transformation, and for each subject a table of layers by kinds."""
    series = [s for s in series if s.of("equivariance")]
    places = list(dict.fromkeys(_place(r) for s in series for r in s.of("equivariance")))
    several = len({data for data, _ in places}) > 1
    kinds = [f"{kind}, {data}" if several else kind for data, kind in places]
    drawn = {place: {s.key: _by_layer(s, place) for s in series} for place in places}
    drawn = {place: {k: line for k, line in found.items() if line.x} for place, found in drawn.items()}
    values = [
        v
        for found in drawn.values()
        for k in found.values()
        for v in (*k.y, *k.low, *k.high)
        if v is not None and math.isfinite(v)
    ]
    # one scale for all kinds: the eye compares them
    scale = (min(0.0, *values) - 0.03, max(1.0, *values) + 0.03) if values else None
    plots: list[dict[str, Any]] = []
    for kind, found in zip(kinds, drawn.values(), strict=True):
        if found:
            highest = (f"{label} {max(k.y):.3f} at layer {k.x[k.y.index(max(k.y))]}" for (_, label), k in found.items())
            alt = f"Centred cosine by layer, {kind}; highest: {', '.join(highest)}"
            svg = figures.lines(f"equivariance-{len(plots)}", alt, [*found.values()], "layer", y_range=scale)
            plots.append({"caption": kind, "svg": svg})
    return {
        "plots": plots,
        "tables": [{"series": s, "rows": _layer_rows(s, places)} for s in series],
        "kinds": kinds,
        "legend": legend(series, "layers", ringed=any(s.regularised for s in series)),
    }


def _by_layer(s: Series, place: tuple[str, str]) -> Line:
    """The subject's line in the plot of that kind."""
    points = {
        r.details["layer"]: (r.value, r.low, r.high)
        for r in s.of("equivariance")
        if r.metric == "centred_cosine" and _place(r) == place and isinstance(r.details.get("layer"), int)
        if r.value is not None and math.isfinite(r.value)
    }
    layers = sorted(points)
    y, low, high = zip(*(points[k] for k in layers), strict=True) if layers else ((), (), ())
    return replace(s.line, x=layers, y=y, low=low, high=high, rings=s.regularised)


def _layer_rows(s: Series, places: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The subject's table: a row per layer, a cell per kind, in each the centred cosine before the rest."""
    cells: dict[Any, dict[tuple[str, str], list[Record]]] = {}
    for r in sorted(s.of("equivariance"), key=lambda r: r.metric != "centred_cosine"):
        cells.setdefault(r.details.get("layer", "–"), {}).setdefault(_place(r), []).append(r)
    return [
        {
            "layer": layer,
            "regularised": layer in s.regularised,
            "cells": [[_cell(r) for r in cells[layer].get(place, [])] for place in places],
        }
        for layer in sorted(cells, key=lambda layer: (isinstance(layer, str), layer))
    ]


def curve_groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One small plot per column of the metrics, gathered by what stands before the '/' of its name."""
    columns = dict.fromkeys(c for run in runs for c in run.curves if c not in ("step", "epoch", "seconds"))
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, column in enumerate(columns):
        drawn: list[Line] = []
        said, bad = [], 0
        for run in runs:
            steps, values = run.curves.get(column, ([], []))
            points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
            bad += len(values) - len(points)
            if points:
                x, y = figures.thin(*zip(*points, strict=True))
                colour, marker = figures.colour_and_marker(run.index)
                drawn.append(Line(x, y, colour, marker if len(runs) > 1 or len(x) == 1 else ""))
                said.append(f"{run.name} from {y[0]:.4g} to {y[-1]:.4g}")
        if not drawn and not bad:
            continue
        prefix, _, name = column.rpartition("/")
        values = [y for line in drawn for y in line.y]
        log = prefix == "gradient" and min(values, default=0.0) > 0 and max(values) > 30 * min(values)
        alt = f"{column} by step: {', '.join(said) or 'no finite value'}"
        svg = figures.lines(f"curve-{number}", alt, drawn, "step", log=log, height=1.8)
        note = " (logarithmic)" if log else ""
        note += f" ({bad:,} values not finite, left out)" if bad else ""
        groups.setdefault(prefix, []).append({"caption": _words(name), "note": note, "svg": svg})
    order = [*PANELS, *(prefix for prefix in groups if prefix not in PANELS)]
    return [{"heading": PANELS.get(p, _words(p)), "plots": groups[p]} for p in order if p in groups]


def pictures(series: Sequence[Series]) -> list[dict[str, Any]]:
    """The pictures that the records name, read from the run's folder and from nowhere else."""
    shown = []
    for s in series:
        found = [_picture(s, r) for r in s.of("feature_maps") if r.picture is not None]
        if found:
            shown.append({"series": s, "pictures": found})
    return shown


def _picture(s: Series, r: Record) -> dict[str, str]:
    path = (s.run.path / str(r.picture)).resolve()
    inside = path.is_relative_to(s.run.path.resolve()) and path.is_file()
    data = path.read_bytes() if inside else b""
    layer = f"Token maps of layer {r.details['layer']}" if "layer" in r.details else "Token maps"
    caption = str(r.details.get("caption") or layer)
    return {
        "caption": caption,
        "alt": caption if caption == layer else f"{layer}: {caption}",
        # by its signature: what is not a PNG is not shown as one
        "data": base64.b64encode(data).decode() if data.startswith(b"\x89PNG") else "",
        "name": str(r.picture),
    }


def _place(r: Record) -> tuple[str, str]:
    return r.data, str(r.details.get("kind", "all"))


def legend(series: Sequence[Series], name: str, ringed: bool = False) -> list[dict[str, Any]]:
    """A piece of line and its name for each subject; the floors of several runs share one entry."""
    floors = [s for s in series if s.subject == "mismatched"]
    entries = [(s.label, s.line) for s in series if len(floors) < 2 or s.subject != "mismatched"]
    if len(floors) > 1:
        entries.append(("other images, in the colour of the run", replace(floors[0].line, colour=INK)))
    if ringed:
        entries.append(("a layer that SER regularises", Line((), (), INK, "", "", rings=(1,))))
    dashes = {"-": "solid", "--": "dashed", ":": "dotted", "": "ring"}
    return [
        {
            "label": label,
            "svg": figures.swatch(f"legend-{name}-{i}", f"{dashes[line.dash]} line", line),
        }
        for i, (label, line) in enumerate(entries)
    ]


def _cell(r: Record, run: Run | None = None, named: bool = False) -> dict[str, str]:
    """A record as a table shows it; with a run, also its difference to that run's own random network."""
    change, same = "", (r.evaluation, r.metric, r.data)
    others = [o for o in (run.records if run else ()) if (o.evaluation, o.metric, o.data) == same]
    random = [o for o in others if o.subject == "random" != r.subject]
    if len(random) > 1:
        random = [o for o in random if o.details == r.details]
    if random and r.value is not None and random[0].value is not None:
        change = f"{r.value - random[0].value:+.{_places(r.unit)}f}".replace("-", "−")
        change += " points" if r.unit == "%" else ""
    known = r.low is not None and r.high is not None
    return {
        "value": _value(r),
        "interval": f"[{_digits(r.low, r.unit)}, {_digits(r.high, r.unit)}]" if known else "",
        "n": f"{r.n:,}",
        "metric": WORDS.get(r.metric, r.metric),
        "change": change,
        "details": ", ".join(f"{_words(k)} {plain(v)}" for k, v in r.details.items()) if named else "",
    }


def _value(r: Record) -> str:
    return _digits(r.value, r.unit) + (f" {r.unit}" if r.unit and r.value is not None else "")


def _places(unit: str) -> int:
    return 1 if unit == "%" else 3


def _digits(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.{_places(unit)}f}".replace("-", "−")


def measured(r: Record) -> str:
    """A record in a sentence: 57.3 % linear top-1."""
    return f"{_value(r)} {_title(r.evaluation, r.metric)}"


def _title(evaluation: str, metric: str) -> str:
    return f"{WORDS.get(evaluation, evaluation)} {WORDS.get(metric, metric)}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def plain(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, list):
        return ", ".join(plain(v) for v in value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
