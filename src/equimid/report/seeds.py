"""Seeds on the page: runs that share all settings but the seed are one row, and rows are compared seed by seed.

n is the number of trainings with different seeds; what decides that two rows differ is in `equimid.statistics`.
"""

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equimid.evaluation.registry import MEASUREMENTS, Headline, measurement_of
from equimid.records import Record, Subject
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Figure, Figures, Group, Section, Text, explained
from equimid.report.figures import Line
from equimid.report.formatting import digits, places, title
from equimid.report.read_run import Run
from equimid.report.series import grouped
from equimid.report.views import pivot
from equimid.statistics import holm, mean_of, paired_difference, verdict

__all__ = ["RunsOverSeeds", "Value", "compare", "seeds_section", "values_of"]


@dataclass(frozen=True, eq=False)
class RunsOverSeeds:
    """Runs of one combination of settings.

    Attributes:
        runs:    {seed: run}, those that are finished.
        missing: (which, why) of the others.
    """

    name: str
    runs: Mapping[int, Run]
    missing: Sequence[tuple[str, str]] = ()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Metric:
    """A headline on one data set.

    Attributes:
        axis: what its plot's axis is called.
        text: what it is, where the label does not say it.
    """

    label: str
    unit: str
    axis: str
    text: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Value:
    """A metric of one run."""

    combination: RunsOverSeeds
    seed: int
    metric: Metric
    value: float


def seeds_section(runs: Sequence[Run]) -> Section:
    """Runs that share all settings but the seed, on the page of several runs; without blocks where no two do.

    Two folders of one seed are one training: the first is taken, the other is named.
    """

    def settings(run: Run) -> str:
        kept = {key: v for key, v in run.settings.items() if key != "seed" and not key.startswith("runtime.")}
        return json.dumps(kept, sort_keys=True, default=str)

    alike = list(grouped([run for run in runs if run.trained_here], settings).values())
    names = [_common([run.name for run in members]) for members in alike]
    combinations = []
    for name, members in zip(names, alike, strict=True):
        by_seed: dict[int, Run] = {}
        missing = []
        for run in members:
            if run.stopped_at:
                done, wanted = run.stopped_at
                missing.append((run.name, f"was stopped at step {done:,} of {wanted:,} and is not counted"))
                continue
            first = by_seed.setdefault(run.settings.get("seed", 0), run)
            if first is not run:
                missing.append((run.name, f"has the settings and the seed of {first.name} and is not counted"))
        unique = name if names.count(name) == 1 else ", ".join(run.name for run in members)
        combinations.append(RunsOverSeeds(unique, by_seed, missing))
    several = any(len(combination.runs) > 1 for combination in combinations)
    return Section("seeds", "Seeds", compare(combinations) if several else ())


def compare(combinations: Sequence[RunsOverSeeds]) -> list[Block]:
    """Means, plots and differences of the combinations; the first is the baseline."""
    values = values_of(combinations)
    notes: list[Block] = [Text(why, "note", who) for c in combinations for who, why in c.missing]
    if not values:
        return [*notes, Text("Nothing is measured yet.", "note")]
    first, *others = combinations
    metrics = grouped(values, lambda v: v.metric)
    differences = _differences(first, values)
    means = pivot(
        "Means over seeds", "Settings", values, lambda v: v.combination, lambda v: v.metric, rows=combinations,
        cell=lambda part: [Entry(_mean_text(part))],
        name=lambda metric: metric.label + (f" ({metric.unit})" if metric.unit else ""),
    )  # fmt: skip
    versus = pivot(
        f"Differences to {first}", "Settings", [v for v in values if v.combination is not first],
        lambda v: v.combination, lambda v: v.metric, rows=others, columns=[*metrics],
        cell=lambda part: differences.get((part[0].combination, part[0].metric), []),
    )  # fmt: skip
    every = pivot(
        "Every seed", "Run", values, lambda v: f"{v.combination}, seed {v.seed}", lambda v: v.metric,
        rows=[f"{c}, seed {seed}" for c in combinations for seed in c.runs],
        cell=lambda part: [Entry(digits(part[0].value, part[0].metric.unit))],
    )  # fmt: skip
    plots = [_plot(combinations, part, number) for number, part in enumerate(metrics.values())]
    texts = [Text(text) for text in dict.fromkeys(metric.text for metric in metrics)]
    return [
        *notes,
        Group(means.label, [explained("means"), *texts, means, explained("rings"), Figures(plots, "wide")]),
        Group(versus.label, [explained("differences"), versus]),
        Group("Every seed in numbers", [every], folded=True),
    ]


def values_of(combinations: Sequence[RunsOverSeeds]) -> list[Value]:
    """Headline by headline what the runs have; of layers those that SER acts on in any run, and the last.

    A run has no value where it has several records and does not say which, or a mean over other members than all runs
    together have.
    """
    runs = [(c, seed, run) for c in combinations for seed, run in c.runs.items()]
    sources = {run.setting("data.source") for _, _, run in runs}
    regularised = {layer for _, _, run in runs for layer in run.ser_layers}
    values = []
    for measurement, headline in ((m, headline) for m in MEASUREMENTS.values() for headline in m.headlines):
        records = [
            ((c, seed), r)
            for c, seed, run in runs
            for r in run.records
            if _is_headline(headline, r) and measurement_of(r.evaluation) is measurement
        ]
        for data, on_data in grouped(records, lambda pair: pair[1].data).items():
            where = "" if sources == {data} else f", {data}"
            unit, label = on_data[-1][1].unit, headline.title or title(on_data[-1][1])
            for each, name in _each(headline.each, [r for _, r in on_data], regularised).items():
                own = [(training, r) for training, r in on_data if r.details.get(headline.each) == each]
                metric = Metric(label + name + where, unit, unit or headline.title, headline.text)
                members = {r.details.get(headline.mean) for _, r in own}
                for (c, seed), pairs in grouped(own, lambda pair: pair[0]).items():
                    value = sum(r.value or 0.0 for _, r in pairs) / len(pairs)
                    has_all = len(pairs) == len(members) == len({r.details.get(headline.mean) for _, r in pairs})
                    if has_all and math.isfinite(value):
                        values.append(Value(c, seed, metric, value))
    return values


def _is_headline(headline: Headline, r: Record) -> bool:
    return (
        (r.metric, r.subject) == (headline.metric, Subject.BACKBONE)
        and r.value is not None
        and headline.details.items() <= r.details.items()
        and all(detail in r.details for detail in (headline.each, headline.mean) if detail)
        and "class" not in r.details  # of one class alone
    )


def _each(each: str, records: Sequence[Record], regularised: Collection[Any]) -> dict[Any, str]:
    """{value of the headline's `each`: what it adds to the label}."""
    if not each:
        return {None: ""}
    values = sorted({r.details[each] for r in records if isinstance(r.details[each], int)})
    if each != "layer":
        return {value: f", {value} a class" for value in values}
    reasons = {v: ["SER"] * (v in regularised) + ["last"] * (v == values[-1]) for v in values}
    return {value: f", layer {value} ({', '.join(why)})" for value, why in reasons.items() if why}


def _mean_text(values: Sequence[Value]) -> str:
    return mean_of([v.value for v in values]).text(places(values[0].metric.unit))


def _plot(combinations: Sequence[RunsOverSeeds], values: Sequence[Value], number: int) -> Figure:
    """All combinations on one axis: each seed, their mean and its interval."""
    dots, texts, metric = [], [], values[0].metric
    for combination, part in grouped(values, lambda v: v.combination).items():
        seeds = [v.value for v in part]
        mean, look = mean_of(seeds), figures.colour_and_marker(combinations.index(combination))
        dots.append(Line(combination.name, [0.0], [mean.value], *look, low=[mean.low], high=[mean.high], rings=seeds))
        texts.append(f"{combination} {_mean_text(part)}")
    alt = f"{metric}: {'; '.join(texts)}"
    return Figure(metric.label, figures.dots(f"seeds-{number}", alt, dots, metric.axis))


def _differences(first: RunsOverSeeds, values: Sequence[Value]) -> dict[tuple[RunsOverSeeds, Metric], list[Entry]]:
    """Every combination but the first, against it; all their comparisons are one family for Holm's correction."""
    by_seed = {
        key: {v.seed: v.value for v in part}
        for key, part in grouped(values, lambda v: (v.combination, v.metric)).items()
    }
    paired = {
        (c, metric): difference
        for (c, metric), seeds in by_seed.items()
        if c is not first and (difference := paired_difference(seeds, by_seed.get((first, metric), {})))
    }
    entries = {}
    for (key, difference), p in zip(paired.items(), holm([d.p for d in paired.values()]), strict=True):
        tested = "no test" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        text = difference.mean.text(places(key[1].unit), signed=True)
        entries[key] = [Entry(text, below=[f"{verdict(difference, p)} · {tested}"])]
    return entries


def _common(names: Sequence[str]) -> str:
    """What the names share, without the word seed at their end."""
    if len(names) == 1:
        return names[0]
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return re.sub(r"[-_ ./]*(seed[-_= ]*\d*)?$", "", shared) or ", ".join(names)
