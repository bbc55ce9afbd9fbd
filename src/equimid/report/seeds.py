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
from equimid.report.blocks import Block, Entry, Fold, Plot, Plots, Row, Section, Table, Text, heading
from equimid.report.figures import Dot
from equimid.report.formatting import digits, places, title
from equimid.report.read_run import Run
from equimid.report.series import OWN
from equimid.statistics import Difference, holm, mean_of, paired_difference, verdict

__all__ = ["Group", "compare", "seeds_section"]


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


_TURNS = {"kind": "quarter turns"}  # they stand for equivariance: exact, without resampling
CORRESPONDENCE = "correspondence, top-1 within the image"
# in this order
HEADLINES = (
    *(Headline(name) for name in ("knn", "linear", "logistic", "mlp", "attentive")),
    Headline("fewshot", each="per_class"),
    Headline("generated_corruptions", "mean_top1"),
    Headline("imagenet_c", "mean_top1"),
    Headline("imagenet_c", "mce"),
    Headline("imagenet_p", "mean_top1"),
    Headline("imagenet_p", "mfr"),
    *(Headline(name) for name in ("imagenet_v2", "imagenet_r", "imagenet_sketch", "imagenet_a")),
    Headline("geometry", label="geometry, mean top-1 over quarter turns", details=_TURNS, mean="pose"),
    Headline("geometry", label="geometry, mean top-1 over angles", details={"kind": "angle"}, mean="pose"),
    Headline("detection", "map"),
    Headline("segmentation", "miou"),
    Headline("equivariance", "place", "place", _TURNS, each="layer"),
    Headline("equivariance", "retrieval", "retrieval", _TURNS, each="layer"),
    Headline("correspondence", label=CORRESPONDENCE, details=_TURNS | {"among": "image"}, each="layer"),
    Headline("pose_probe", label="turn read from the map", details={"target": "turn", "from": "map"}, each="layer"),
)
# by the headline's label
EXPLAINED = {
    "place": "Place: the cosine, patch by patch, of the map of a turned image and the turned map of the image, after "
    "the mean token of each image is taken away; of quarter turns.",
    "retrieval": "Retrieval: how often the partner of a patch is the nearest of all patches of the turned image; of "
    "quarter turns.",
    CORRESPONDENCE: "Correspondence: retrieval on the images that correspondence is measured on; of quarter turns.",
}


MEANS = (
    "n is the number of trainings with different seeds; a seed changes initial weights, order of the data, views, "
    "poses and the probes. ± is half of Student's 95 % interval of the mean; one seed, or seeds that agree to the "
    "digit, have none."
)
DIFFERENCES = (
    "Paired over the seeds that both have, with Student's 95 % interval; p is of the paired t test after Holm's "
    "correction over all comparisons of this table. “Higher” and “lower” are said where it is below 0.05; all else is "
    "not distinguishable with so many seeds. The intervals are not corrected."
)


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
        return {seed: value for seed, run in self.runs.items() if (value := metric.of(run)) is not None}


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
        each, mean = self.headline.each, self.headline.mean
        records = [r for r in _own(self.headline, run) if r.data == self.data]
        if each:
            records = [r for r in records if r.details[each] == self.value]
        members = {r.details[mean] for r in records} if mean else set()
        if members != self.members or len(records) != max(1, len(members)):
            return None
        value = sum(r.value or 0.0 for r in records) / len(records)
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
        unique = name if names.count(name) == 1 else ", ".join(run.name for run in members)
        groups.append(Group(unique, by_seed, missing))
    several = any(len(group.runs) > 1 for group in groups)
    return Section("seeds", "Seeds", compare(groups) if several else ())


def compare(groups: Sequence[Group]) -> list[Block]:
    """Means, plots and differences of the groups; the first is the baseline."""
    metrics = _metrics(groups)
    blocks: list[Block] = [Text(why, "note", who) for group in groups for who, why in group.missing]
    if not metrics:
        return [*blocks, Text("Nothing is measured yet.")]
    labels = {metric.headline.label for metric in metrics}
    means = {g.name: [_cell(_mean(g, m)) for m in metrics] for g in groups}
    blocks += [
        heading("Means over seeds"),
        Text(MEANS),
        *(Text(text) for label, text in EXPLAINED.items() if label in labels),
        _table("Means over seeds", "Settings", [m.label + (f" ({m.unit})" if m.unit else "") for m in metrics], means),
        Text("Each ring is a seed, each filled mark their mean, each bar its interval."),
        Plots([_plot(groups, metric, number) for number, metric in enumerate(metrics)], "wide"),
    ]
    names = [metric.label for metric in metrics]
    if len(groups) > 1:
        what = f"Differences to {groups[0].name}"
        differences = _table(what, "Settings", names, _differences(groups, metrics))
        blocks += [heading(what), Text(DIFFERENCES), differences]
    every = {
        f"{g.name}, seed {seed}": [_cell("" if (v := m.of(run)) is None else digits(v, m.unit)) for m in metrics]
        for g in groups
        for seed, run in g.runs.items()
    }
    return [*blocks, Fold("Every seed in numbers", [_table("Every seed", "Run", names, every)])]


def _table(label: str, corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[Entry]]]) -> Table:
    return Table(label, corner, columns, [Row(head, cells) for head, cells in rows.items()])


def _cell(value: str, *below: str) -> list[Entry]:
    return [Entry(value, below=below)] if value else []


def _mean(group: Group, metric: Metric) -> str:
    values = list(group.values(metric).values())
    return mean_of(values).text(places(metric.unit)) if values else ""


def _own(headline: Headline, run: Run) -> list[Record]:
    """The headline's records of the run's network, on any data."""
    return [
        r
        for r in run.records
        if (r.evaluation, r.metric, r.subject) == (headline.evaluation, headline.metric, OWN)
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
            records = [r for r in own if r.data == data]
            label = headline.label or title(headline.evaluation, headline.metric)
            where = "" if sources == {data} else f", {data}"
            members = frozenset(r.details[headline.mean] for r in records if headline.mean)
            for value, name in _values(headline, records, regularised).items():
                metrics.append(Metric(label + name + where, headline, data, records[-1].unit, value, members))
    return metrics


def _values(headline: Headline, records: Sequence[Record], regularised: Collection[Any]) -> dict[Any, str]:
    """{value of the headline's `each`: what it adds to the label}."""
    if not headline.each:
        return {None: ""}
    values = sorted({r.details[headline.each] for r in records if isinstance(r.details[headline.each], int)})
    if headline.each != "layer":
        return {value: f", {value} a class" for value in values}
    chosen = [value for value in values if value in regularised or value == values[-1]]
    words = {v: ["SER"] * (v in regularised) + ["last"] * (v == values[-1]) for v in chosen}
    return {value: f", layer {value} ({', '.join(words[value])})" for value in chosen}


def _plot(groups: Sequence[Group], metric: Metric, number: int) -> Plot:
    """All combinations on one axis: each seed, their mean and its interval."""
    dots, said = [], []
    for index, group in enumerate(groups):
        if values := list(group.values(metric).values()):
            mean = mean_of(values)
            dots.append(Dot(group.name, mean.value, mean.low, mean.high, *figures.colour_and_marker(index), values))
            said.append(f"{group.name} {_mean(group, metric)}")
    alt = f"{metric.label}: {'; '.join(said)}"
    return Plot(metric.label, figures.dots(f"seeds-{number}", alt, dots, metric.unit or metric.headline.label))


def _differences(groups: Sequence[Group], metrics: Sequence[Metric]) -> dict[str, list[list[Entry]]]:
    """Every group but the first, against it; all their comparisons are one family for Holm's correction."""
    first, *others = groups
    rows = [[paired_difference(g.values(m), first.values(m)) for m in metrics] for g in others]
    adjusted = iter(holm([d.p if d else None for row in rows for d in row]))

    def cell(metric: Metric, difference: Difference | None) -> list[Entry]:
        p = next(adjusted)
        if difference is None:
            return []
        tested = "no test" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        text = difference.mean.text(places(metric.unit), signed=True)
        return _cell(text, f"{verdict(difference, p)} · {tested}")

    return {
        group.name: [cell(metric, difference) for metric, difference in zip(metrics, row, strict=True)]
        for group, row in zip(others, rows, strict=True)
    }


def _common(names: Sequence[str]) -> str:
    """What the names share, without the word seed at their end."""
    if len(names) == 1:
        return names[0]
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return re.sub(r"[-_ ./]*(seed[-_= ]*\d*)?$", "", shared) or ", ".join(names)
