"""Whom the page compares: the runs' networks, and what each is measured beside.

"random" (random weights), "pixels" and "patch_colours" (mean colours of patches) do not depend on the
training. "random" is shown once for all runs that agree in backbone shape, evaluation settings, data, seed and number
of images, else once per group of such runs; the other two likewise, where of the shape only the size of image and
patch counts, and where equal values are one. Any other, such as "mismatched" (the map of another image) and
"not_carried" (the map left where it was), depends on the weights and is shown for every run. A difference is always
taken to the run's own random network.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Key
from equimid.report.figures import INK, Line
from equimid.report.read_run import Run

__all__ = [
    "CHANCE", "COLOURS", "NAMES", "OWN", "RANDOM", "Series", "Subjects", "all_series", "finite", "grouped", "legend",
    "of", "only", "records_of",
]  # fmt: skip

OWN = "backbone"  # the network that was trained
RANDOM, PIXELS, COLOURS = "random", "pixels", "patch_colours"  # they do not depend on the training
NAMES = {
    RANDOM: "random network",
    PIXELS: "raw pixels",
    COLOURS: "mean colours of patches",
    "mismatched": "other images",
    "not_carried": "not carried",
}
CHANCE = Line(dash=":")
DASHES = {"not_carried": "-."}  # of those that depend on the weights; any other is dotted
# what a reference depends on, of the settings; pixels have no network
SHAPE = tuple(
    f"backbone.{name}" for name in ("name", "image_size", "patch_size", "embed_dim", "depth", "num_heads", "cls_layer")
)
SHARED = {
    RANDOM: (*SHAPE, "model"),
    PIXELS: ("backbone.image_size", "model"),
    COLOURS: ("backbone.image_size", "backbone.patch_size", "model"),
}


@dataclass(frozen=True)
class Series:
    """One subject as the page shows it: a run's network, or a reference and the run it is taken from."""

    label: str
    subject: str
    run: Run
    line: Line

    @property
    def own(self) -> bool:
        """The run's network, no reference."""
        return self.subject == self.run.subject

    @property
    def records(self) -> list[Record]:
        return [r for r in self.run.records if r.subject == self.subject]

    @property
    def regularised(self) -> tuple[Any, ...]:
        """The layers that SER acted on in this subject."""
        return self.run.ser_layers if self.own else ()


Subjects = Sequence[tuple[Series, Sequence[Record]]]  # the records of each subject that has some


def all_series(runs: Sequence[Run]) -> list[Series]:
    """Networks first, then what depends on each, then the references that they share (by the rule above)."""
    series = []
    for run in runs:
        series.append(Series(run.name, run.subject, run, Line((), (), *figures.colour_and_marker(run.index))))
    for run in runs:
        colour = figures.colour_and_marker(run.index)[0]
        for subject in dict.fromkeys(r.subject for r in run.records):
            if subject != run.subject and subject not in SHARED:
                name = NAMES.get(subject, subject)
                label = f"{name}, {run.name}" if len(runs) > 1 else name
                series.append(Series(label, subject, run, Line(colour=colour, dash=DASHES.get(subject, ":"))))
    for subject, settings in SHARED.items():
        groups: dict[str, list[Run]] = {}
        for run in runs:
            own = [r for r in run.records if r.subject == subject]
            if own and subject != run.subject:
                measured = sorted({(r.evaluation, r.data, r.seed, r.n) for r in own})
                key = [*(run.setting(name) for name in settings), run.setting("evaluation"), measured]
                groups.setdefault(json.dumps(key, default=str), []).append(run)
        if subject != RANDOM:
            groups = _merged(groups, subject)
        for i, group in enumerate(groups.values()):
            several = len(groups) > 1
            label = NAMES[subject] + (f" ({', '.join(run.name for run in group)})" if several else "")
            line = Line(marker="xP*d"[i % 4] if several else "", dash="--" if subject == RANDOM else "-.")
            series.append(Series(label, subject, group[0], line))
    return series


def _merged(groups: Mapping[str, list[Run]], subject: str) -> dict[str, list[Run]]:
    """Groups whose reference came to the same values: the image size of others' networks is not in their settings."""
    merged: dict[str, list[Run]] = {}
    for group in groups.values():
        values = [
            (r.evaluation, r.metric, r.data, r.details, r.value) for r in group[0].records if r.subject == subject
        ]
        merged.setdefault(json.dumps(values, sort_keys=True, default=str), []).extend(group)
    return merged


def of(series: Sequence[Series], *evaluations: str) -> Subjects:
    """The subjects' records of those evaluations, in the order of their names here."""
    each = [(s, [r for name in evaluations for r in s.records if r.evaluation == name]) for s in series]
    return [(s, records) for s, records in each if records]


def only(subjects: Subjects, condition: Callable[[Record], Any]) -> Subjects:
    """The records that meet the condition."""
    each = [(s, [r for r in records if condition(r)]) for s, records in subjects]
    return [(s, records) for s, records in each if records]


def grouped(subjects: Subjects, key: Callable[[Record], Any]) -> dict[Any, Subjects]:
    """{key: the records that have it}, in the order that they come."""
    keys = dict.fromkeys(key(r) for r in records_of(subjects))
    return {
        value: [(s, kept) for s, records in subjects if (kept := [r for r in records if key(r) == value])]
        for value in keys
    }


def records_of(subjects: Subjects) -> list[Record]:
    return [r for _, records in subjects for r in records]


def finite(records: Iterable[Record]) -> list[tuple[Record, float]]:
    """Records with their values, where they have one that can be drawn."""
    return [(r, r.value) for r in records if r.value is not None and math.isfinite(r.value)]


def legend(series: Sequence[Series], name: str, layers: bool = False, chance: bool = False) -> Key:
    """A piece of line and its name for each subject; what depends on several runs shares one entry."""
    dependent = [s.subject for s in series if not s.own and s.subject not in SHARED]
    shared = {subject for subject in dependent if dependent.count(subject) > 1}
    entries = [(s.label, s.line) for s in series if s.own or s.subject not in shared]
    for subject in sorted(shared):
        line = next(s.line for s in series if s.subject == subject)
        entries.append((f"{NAMES.get(subject, subject)}, in the colour of the run", replace(line, colour=INK)))
    if layers and any(s.regularised for s in series):
        entries.append(("a layer that SER regularises", Line(dash="", rings=(1,))))
    if chance:
        entries.append(("chance", CHANCE))
    looks = {"-": "solid line", "--": "dashed line", ":": "dotted line", "-.": "line of dots and dashes"}
    return Key(
        [
            (label, figures.swatch(f"legend-{name}-{i}", looks.get(line.dash, "ring" if line.rings else "mark"), line))
            for i, (label, line) in enumerate(entries)
        ]
    )
