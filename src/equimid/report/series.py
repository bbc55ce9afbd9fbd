"""Whom the page compares: the runs' networks, and what each is measured beside.

"random" (random weights), "pixels" and "patch_colours" (mean colours of patches) do not depend on the
training. "random" is shown once for all runs that agree in backbone shape, evaluation settings, data, seed and number
of images, else once per group of such runs; the other two likewise, where of the shape only the size of image and
patch counts, and where equal values are one. Any other, such as "mismatched" (the map of another image) and
"not_carried" (the map left where it was), depends on the weights and is shown for every run. A difference is always
taken to the run's own random network.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from equimid.evaluation.registry import MEASUREMENTS, measurement_of
from equimid.records import Record, Subject
from equimid.report import figures
from equimid.report.figures import Line
from equimid.report.read_run import Run

__all__ = [
    "NAMES",
    "SHARED",
    "Point",
    "Series",
    "all_series",
    "grouped",
    "in_page_order",
    "points_of",
]

NAMES: Mapping[str, str] = {
    Subject.RANDOM: "random network",
    Subject.PIXELS: "raw pixels",
    Subject.PATCH_COLOURS: "mean colours of patches",
    Subject.MISMATCHED: "other images",
    Subject.NOT_CARRIED: "not carried",
}
DASHES: Mapping[str, str] = {Subject.NOT_CARRIED: "-."}  # of those that depend on the weights; any other is dotted
# what a reference depends on, of the settings; pixels have no network
SHAPE = tuple(
    f"backbone.{name}" for name in ("name", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "cls_layer")
)
SHARED = {
    Subject.RANDOM: (*SHAPE, "model"),
    Subject.PIXELS: ("backbone.image_size", "model"),
    Subject.PATCH_COLOURS: ("backbone.image_size", "backbone.patch_size", "model"),
}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Series:
    """One subject as the page shows it: a run's network, or a reference and the run it is taken from."""

    label: str
    subject: str
    run: Run
    line: Line

    def __str__(self) -> str:
        return self.label

    @property
    def own(self) -> bool:
        """The run's network, no reference."""
        return self.subject == self.run.subject

    @property
    def regularised(self) -> tuple[Any, ...]:
        """The layers that SER acted on in this subject."""
        return self.run.ser_layers if self.own else ()


@dataclass(frozen=True, kw_only=True)
class Point(Record):
    """A record, and the subject of the page that it is of."""

    series: Series

    def detail(self, name: str, default: Any = None) -> Any:
        return self.details.get(name, default)


def all_series(runs: Sequence[Run]) -> list[Series]:
    """Networks first, then what depends on each, then the references that they share (by the rule above)."""
    series = []
    for run in runs:
        colour, marker = figures.colour_and_marker(run.index)
        series.append(Series(run.name, run.subject, run, Line(colour=colour, marker=marker)))
    for run in runs:
        for subject in dict.fromkeys(r.subject for r in run.records):
            if subject != run.subject and subject not in SHARED:
                name = NAMES.get(subject, subject)
                line = Line(colour=figures.colour_and_marker(run.index)[0], dash=DASHES.get(subject, ":"))
                series.append(Series(f"{name}, {run.name}" if len(runs) > 1 else name, subject, run, line))
    for subject, settings in SHARED.items():
        groups: dict[str, list[Run]] = {}
        for run in runs:
            if subject != run.subject and any(r.subject == subject for r in run.records):
                groups.setdefault(_identity(run, subject, settings), []).append(run)
        if subject != Subject.RANDOM:  # the image size of others' networks is not in their settings
            merged: dict[str, list[Run]] = {}
            for group in groups.values():
                merged.setdefault(_values(group[0], subject), []).extend(group)
            groups = merged
        for i, group in enumerate(groups.values()):
            several = len(groups) > 1
            label = NAMES[subject] + (f" ({', '.join(run.name for run in group)})" if several else "")
            line = Line(marker="xP*d"[i % 4] if several else "", dash="--" if subject == Subject.RANDOM else "-.")
            series.append(Series(label, subject, group[0], line))
    return series


def _identity(run: Run, subject: str, settings: Sequence[str]) -> str:
    """What a reference's values depend on."""
    measured = sorted({(r.evaluation, r.data, r.seed, r.n) for r in run.records if r.subject == subject})
    how = {key: value for key, value in run.settings.items() if key.startswith("evaluation.")}
    return json.dumps([*(run.setting(name) for name in settings), how, measured], default=str)


def _values(run: Run, subject: str) -> str:
    values = [(r.evaluation, r.metric, r.data, r.details, r.value) for r in run.records if r.subject == subject]
    return json.dumps(values, sort_keys=True, default=str)


def points_of(series: Sequence[Series]) -> list[Point]:
    """What was measured, subject by subject."""
    measured = [(s, r) for s in series for r in s.run.records if r.subject == s.subject]
    return [Point(**vars(r), series=s) for s, r in measured]


def in_page_order(points: Sequence[Point]) -> list[Point]:
    """Measurement by measurement, in the order in which they are declared."""
    known = list(MEASUREMENTS.values())
    return sorted(points, key=lambda p: known.index(measurement_of(p.evaluation)))


def grouped(items: Iterable[T], key: Callable[[T], Any]) -> Mapping[Any, list[T]]:
    """{key: the items that have it}, in the order that they come."""
    groups: dict[Any, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
