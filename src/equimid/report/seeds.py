"""Seeds on the page: runs that share all settings but the seed are one row, and rows are compared seed by seed.

n is the number of trainings with different seeds; what decides that two rows differ is in `equimid.statistics`.
"""

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Fold, Plot, Plots, Row, Section, Table, Text
from equimid.report.figures import Dot
from equimid.report.formatting import digits, places, title
from equimid.report.read_run import Run
from equimid.statistics import holm, mean_of, paired_difference, verdict

__all__ = ["Group", "compare", "seeds_section"]

POSED = "quarter turns"  # the kind that stands for equivariance: exact, without resampling


@dataclass(frozen=True)
class Headline:
    """What stands for an evaluation: its records of one metric that have these details.

    label:   in place of the evaluation's and the metric's names
    details: {detail: value} of its records
    each:    a detail of which every value is a headline of its own; of "layer" those that SER acts on, and the last
    mean:    a detail that tells several records apart, whose mean the headline is
    """

    evaluation: str
    metric: str = "top1"
    label: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    each: str = ""
    mean: str = ""


# in this order
HEADLINES = (
    Headline("knn"),
    Headline("linear"),
    Headline("logistic"),
    Headline("mlp"),
    Headline("attentive"),
    Headline("fewshot", each="per_class"),
    Headline("generated_corruptions", "mean_top1"),
    Headline("imagenet_c", "mean_top1"),
    Headline("imagenet_c", "mce"),
    Headline("imagenet_p", "mean_top1"),
    Headline("imagenet_p", "mfr"),
    Headline("imagenet_v2"),
    Headline("imagenet_r"),
    Headline("imagenet_sketch"),
    Headline("imagenet_a"),
    Headline("geometry", label="geometry, mean top-1 over quarter turns", details={"kind": POSED}, mean="pose"),
    Headline("geometry", label="geometry, mean top-1 over angles", details={"kind": "angle"}, mean="pose"),
    Headline("detection", "map"),
    Headline("segmentation", "miou"),
    Headline("equivariance", "place", "place", {"kind": POSED}, each="layer"),
    Headline("equivariance", "retrieval", "retrieval", {"kind": POSED}, each="layer"),
    Headline(
        "correspondence",
        label="correspondence, top-1 within the image",
        details={"kind": POSED, "among": "image"},
        each="layer",
    ),
    Headline("pose_probe", label="turn read from the map", details={"target": "turn", "from": "map"}, each="layer"),
)
# by the headline's label
EXPLAINED = {
    "place": "Place: the cosine, patch by patch, of the map of a turned image and the turned map of the image, after "
    "the mean token of each image is taken away; of quarter turns.",
    "retrieval": "Retrieval: how often the partner of a patch is the nearest of all patches of the turned image; of "
    "quarter turns.",
    "correspondence, top-1 within the image": "Correspondence: retrieval on the images that correspondence is measured "
    "on; of quarter turns.",
}


@dataclass(frozen=True)
class Group:
    """Runs of one combination of settings.

    runs:    {seed: run}, those that are finished
    missing: (which, why) of the others
    """

    name: str
    runs: Mapping[int, Run]
    missing: Sequence[tuple[str, str]] = ()

    def values(self, metric: "Metric") -> dict[int, float]:
        """{seed: value} of the runs that have it; a run that has several of it does not say which."""
        found = {seed: metric.of(run) for seed, run in self.runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Metric:
    """A headline on one data set.

    value:   of the headline's detail `each`, or None
    members: values of the headline's detail `mean` that any run has: a mean over others is another value
    """

    label: str
    headline: Headline
    data: str
    unit: str
    value: Any = None
    members: frozenset[Any] = frozenset()

    def of(self, run: Run) -> float | None:
        """Its value; None where the run has none, or several and does not say which, or a mean over other members."""
        headline = self.headline
        found = [r for r in _own(headline, run) if r.data == self.data]
        if headline.each:
            found = [r for r in found if r.details[headline.each] == self.value]
        if headline.mean:
            if len(found) != len(self.members) or {r.details[headline.mean] for r in found} != self.members:
                return None
        elif len(found) != 1:
            return None
        value = sum(r.value or 0.0 for r in found) / len(found)
        return value if math.isfinite(value) else None


def seeds_section(runs: Sequence[Run]) -> Section:
    """Runs that share all settings but the seed, on the page of several runs; without blocks where no two do.

    Two folders of one seed are one training: the first is taken, the other is named.
    """
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if run.trained_here:
            same = {key: value for key, value in run.config.items() if key not in ("seed", "runtime")}
            alike.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    names = [_common([run.name for run in members]) for members in alike.values()]
    groups = []
    for name, members in zip(names, alike.values(), strict=True):
        by_seed: dict[int, Run] = {}
        missing = []
        for run in members:
            if run.stopped_at:
                done, wanted = run.stopped_at
                missing.append((run.name, f"was stopped at step {done:,} of {wanted:,} and is not counted"))
                continue
            first = by_seed.setdefault(run.config.get("seed", 0), run)
            if first is not run:
                missing.append((run.name, f"has the settings and the seed of {first.name} and is not counted"))
        told = name if names.count(name) == 1 else ", ".join(run.name for run in members)
        groups.append(Group(told, by_seed, missing))
    if all(len(group.runs) < 2 for group in groups):
        return Section("seeds", "Seeds")
    return Section("seeds", "Seeds", compare(groups))


def compare(groups: Sequence[Group]) -> list[Block]:
    """Means, plots and differences of the groups; the first is the baseline."""
    metrics = _metrics(groups)
    blocks: list[Block] = [Text(why, "note", who) for group in groups for who, why in group.missing]
    if not metrics:
        return [*blocks, Text("Nothing is measured yet.")]
    blocks += [
        Text("Means over seeds", "heading"),
        Text(
            "n is the number of trainings with different seeds; a seed changes initial weights, order of the data, "
            "views, poses and the probes. ± is half of Student's 95 % interval of the mean; one seed, or seeds that "
            "agree to the digit, have none."
        ),
        *_explained(metrics),
        Table(
            "Means over seeds",
            "Settings",
            [m.label + (f" ({m.unit})" if m.unit else "") for m in metrics],
            [Row(g.name, [_mean_cell(g, m) for m in metrics]) for g in groups],
        ),
        Text("Each ring is a seed, each filled mark their mean, each bar its interval."),
        Plots([_plot(groups, metric, number) for number, metric in enumerate(metrics)], "wide"),
    ]
    if len(groups) > 1:
        blocks += [
            Text(f"Differences to {groups[0].name}", "heading"),
            Text(
                "Paired over the seeds that both have, with Student's 95 % interval; p is of the paired t test after "
                "Holm's correction over all comparisons of this table. “Higher” and “lower” are said where it is below "
                "0.05; all else is not distinguishable with so many seeds. The intervals are not corrected."
            ),
            Table(
                f"Differences to {groups[0].name}",
                "Settings",
                [m.label for m in metrics],
                _differences(groups, metrics),
            ),
        ]
    rows = [
        Row(f"{g.name}, seed {seed}", [_seed_cell(m.of(run), m) for m in metrics])
        for g in groups
        for seed, run in g.runs.items()
    ]
    table = Table("Every seed", "Run", [m.label for m in metrics], rows)
    return [*blocks, Fold("Every seed in numbers", [table])]


def _own(headline: Headline, run: Run) -> list[Record]:
    """The headline's records of the run's network, on any data."""
    return [
        r
        for r in run.records
        if (r.evaluation, r.metric, r.subject) == (headline.evaluation, headline.metric, "backbone")
        and r.value is not None
        and headline.details.items() <= r.details.items()
        and all(detail in r.details for detail in (headline.each, headline.mean) if detail)
        and "class" not in r.details  # of one class alone
    ]


def _metrics(groups: Sequence[Group]) -> list[Metric]:
    """Headlines that any run has; of layers those that SER acts on in any run, and the last."""
    runs = [run for group in groups for run in group.runs.values()]
    sources = {run.setting("data.source") for run in runs}
    regularised = {layer for run in runs for layer in run.ser_layers}
    metrics = []
    for headline in HEADLINES:
        own = [r for run in runs for r in _own(headline, run)]
        for data in dict.fromkeys(r.data for r in own):
            found = [r for r in own if r.data == data]
            label = headline.label or title(headline.evaluation, headline.metric)
            where = "" if sources == {data} else f", {data}"
            members = frozenset(r.details[headline.mean] for r in found) if headline.mean else frozenset()
            for value, name in _values(headline, found, regularised).items():
                metrics.append(Metric(label + name + where, headline, data, found[-1].unit, value, members))
    return metrics


def _values(headline: Headline, found: Sequence[Record], regularised: Collection[Any]) -> dict[Any, str]:
    """{value of the headline's `each`: what it adds to the label}."""
    if not headline.each:
        return {None: ""}
    values = sorted({r.details[headline.each] for r in found if isinstance(r.details[headline.each], int)})
    if headline.each != "layer":
        return {value: f", {value} a class" for value in values}
    chosen = [value for value in values if value in regularised or value == values[-1]]
    words = {v: ["SER"] * (v in regularised) + ["last"] * (v == values[-1]) for v in chosen}
    return {value: f", layer {value} ({', '.join(words[value])})" for value in chosen}


def _explained(metrics: Sequence[Metric]) -> list[Block]:
    """What the words mean of those that are there."""
    there = {metric.headline.label for metric in metrics}
    return [Text(text) for label, text in EXPLAINED.items() if label in there]


def _mean_cell(group: Group, metric: Metric) -> list[Entry]:
    values = group.values(metric)
    return [Entry(mean_of(list(values.values())).text(places(metric.unit)))] if values else []


def _seed_cell(value: float | None, metric: Metric) -> list[Entry]:
    return [] if value is None else [Entry(digits(value, metric.unit))]


def _plot(groups: Sequence[Group], metric: Metric, number: int) -> Plot:
    """All combinations on one axis: each seed, their mean and its interval."""
    rows, said = [], []
    for index, group in enumerate(groups):
        values = group.values(metric)
        if values:
            mean = mean_of(list(values.values()))
            colour, marker = figures.colour_and_marker(index)
            rows.append(Dot(group.name, mean.value, mean.low, mean.high, colour, marker, list(values.values())))
            said.append(f"{group.name} {mean.text(places(metric.unit))}")
    alt = f"{metric.label}: {'; '.join(said)}"
    return Plot(metric.label, figures.dots(f"seeds-{number}", alt, rows, metric.unit or metric.headline.label))


def _differences(groups: Sequence[Group], metrics: Sequence[Metric]) -> list[Row]:
    """Rows of every group but the first, against it; all their comparisons are one family for Holm's correction."""
    found = [[paired_difference(g.values(m), groups[0].values(m)) for m in metrics] for g in groups[1:]]
    adjusted = iter(holm([d.p if d else None for row in found for d in row]))
    rows = []
    for group, row in zip(groups[1:], found, strict=True):
        cells: list[list[Entry]] = []
        for metric, difference in zip(metrics, row, strict=True):
            p = next(adjusted)
            if difference is None:
                cells.append([])
                continue
            tested = "no test" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
            below = f"{verdict(difference, p)} · {tested}"
            cells.append([Entry(difference.mean.text(places(metric.unit), signed=True), below=[below])])
        rows.append(Row(group.name, cells))
    return rows


def _common(names: Sequence[str]) -> str:
    """What the names share, without the word seed at their end."""
    if len(names) == 1:
        return names[0]
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return re.sub(r"[-_ ./]*(seed[-_= ]*\d*)?$", "", shared) or ", ".join(names)
