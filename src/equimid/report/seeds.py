"""Seeds on the page: runs that share all settings but the seed are one row, and rows are compared seed by seed.

n is the number of trainings with different seeds; what decides that two rows differ is in `equimid.statistics`.
"""

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equimid.evaluation.registry import MEASUREMENTS, Headline, measurement_of
from equimid.records import Record
from equimid.report import figures
from equimid.report.blocks import Block, Entry, Figure, Figures, Group, Row, Section, Table, Text
from equimid.report.figures import Dot
from equimid.report.formatting import digits, places, title
from equimid.report.read_run import Run
from equimid.report.series import grouped
from equimid.statistics import Mean, holm, mean_of, paired_difference, verdict

__all__ = ["Combination", "Metric", "compare", "metrics_of", "seeds_section"]

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
class Combination:
    """Runs of one combination of settings.

    Attributes:
        runs:    {seed: run}, those that are finished.
        missing: (which, why) of the others.
    """

    name: str
    runs: Mapping[int, Run]
    missing: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Metric:
    """A headline on one data set.

    Attributes:
        axis:   what its plot's axis is called.
        text:   what it is, where the label does not say it.
        values: {folder of a run: value}, of the runs that have it and say which it is.
    """

    label: str
    unit: str
    axis: str
    text: str
    values: Mapping[Path, float]

    def of(self, combination: Combination) -> dict[int, float]:
        """{seed: value} of a combination's runs."""
        runs = combination.runs.items()
        return {seed: self.values[run.path] for seed, run in runs if run.path in self.values}

    def mean(self, combination: Combination) -> Mean | None:
        """Over the seeds, None where no run has a value."""
        values = list(self.of(combination).values())
        return mean_of(values) if values else None


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
        combinations.append(Combination(unique, by_seed, missing))
    several = any(len(combination.runs) > 1 for combination in combinations)
    return Section("seeds", "Seeds", compare(combinations) if several else ())


def compare(combinations: Sequence[Combination]) -> list[Block]:
    """Means, plots and differences of the combinations; the first is the baseline."""
    metrics = metrics_of([run for c in combinations for run in c.runs.values()])
    blocks: list[Block] = [Text(why, "note", who) for c in combinations for who, why in c.missing]
    if not metrics:
        return [*blocks, Text("Nothing is measured yet.", "note")]
    labels = [m.label + (f" ({m.unit})" if m.unit else "") for m in metrics]
    means = {c.name: [_cell(_text(m, c)) for m in metrics] for c in combinations}
    every = {
        f"{c.name}, seed {seed}": [_cell(_digits(m, run)) for m in metrics]
        for c in combinations
        for seed, run in c.runs.items()
    }
    labels_alone = [m.label for m in metrics]
    versus = f"Differences to {combinations[0].name}"
    return [
        *blocks,
        Group(
            "Means over seeds",
            [
                Text(MEANS),
                *(Text(text) for text in dict.fromkeys(m.text for m in metrics)),
                _table("Means over seeds", "Settings", labels, means),
                Text("Each ring is a seed, each filled mark their mean, each bar its interval."),
                Figures([_plot(combinations, m, number) for number, m in enumerate(metrics)], "wide"),
            ],
        ),
        Group(
            versus,
            [Text(DIFFERENCES), _table(versus, "Settings", labels_alone, _differences(combinations, metrics))],
        ),
        Group("Every seed in numbers", [_table("Every seed", "Run", labels_alone, every)], folded=True),
    ]


def metrics_of(runs: Sequence[Run]) -> list[Metric]:
    """Headlines that any run has; of layers those that SER acts on in any run, and the last."""
    sources = {run.setting("data.source") for run in runs}
    regularised = {layer for run in runs for layer in run.ser_layers}
    metrics = []
    for measurement, headline in ((m, headline) for m in MEASUREMENTS.values() for headline in m.headlines):
        found = [
            (run, r)
            for run in runs
            for r in run.records
            if _is_headline(headline, r) and measurement_of(r.evaluation) is measurement
        ]
        for data, on_data in grouped(found, lambda pair: pair[1].data).items():
            where = "" if sources == {data} else f", {data}"
            for value, name in _values(headline.each, [r for _, r in on_data], regularised).items():
                own = [(run, r) for run, r in on_data if r.details.get(headline.each) == value]
                last = on_data[-1][1]
                label = (headline.title or title(last)) + name + where
                axis = last.unit or headline.title
                metrics.append(Metric(label, last.unit, axis, headline.text, _by_run(headline.mean, own)))
    return metrics


def _is_headline(headline: Headline, r: Record) -> bool:
    return (
        (r.metric, r.subject) == (headline.metric, "backbone")
        and r.value is not None
        and headline.details.items() <= r.details.items()
        and all(detail in r.details for detail in (headline.each, headline.mean) if detail)
        and "class" not in r.details  # of one class alone
    )


def _by_run(mean: str, records: Sequence[tuple[Run, Record]]) -> dict[Path, float]:
    """{folder of a run: value}; none where the run has several and does not say which, or a mean over other members
    than all runs together have."""
    members = {r.details.get(mean) for _, r in records}
    values = {}
    for run, own in grouped(records, lambda pair: pair[0].path).items():
        value = sum(r.value or 0.0 for _, r in own) / len(own)
        if len(own) == len(members) and {r.details.get(mean) for _, r in own} == members and math.isfinite(value):
            values[run] = value
    return values


def _values(each: str, records: Sequence[Record], regularised: Collection[Any]) -> dict[Any, str]:
    """{value of the headline's `each`: what it adds to the label}."""
    if not each:
        return {None: ""}
    values = sorted({r.details[each] for r in records if isinstance(r.details[each], int)})
    if each != "layer":
        return {value: f", {value} a class" for value in values}
    words = {v: ["SER"] * (v in regularised) + ["last"] * (v == values[-1]) for v in values}
    return {value: f", layer {value} ({', '.join(why)})" for value, why in words.items() if why}


def _table(label: str, corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[Entry]]]) -> Table:
    return Table(label, corner, columns, [Row(head, cells) for head, cells in rows.items()])


def _cell(value: str, *below: str) -> list[Entry]:
    return [Entry(value, below=below)] if value else []


def _text(metric: Metric, combination: Combination) -> str:
    mean = metric.mean(combination)
    return mean.text(places(metric.unit)) if mean else ""


def _digits(metric: Metric, run: Run) -> str:
    return digits(metric.values[run.path], metric.unit) if run.path in metric.values else ""


def _plot(combinations: Sequence[Combination], metric: Metric, number: int) -> Figure:
    """All combinations on one axis: each seed, their mean and its interval."""
    dots, said = [], []
    for index, combination in enumerate(combinations):
        if mean := metric.mean(combination):
            look, seeds = figures.colour_and_marker(index), list(metric.of(combination).values())
            dots.append(Dot(combination.name, mean.value, mean.low, mean.high, *look, seeds))
            said.append(f"{combination.name} {_text(metric, combination)}")
    alt = f"{metric.label}: {'; '.join(said)}"
    return Figure(metric.label, figures.dots(f"seeds-{number}", alt, dots, metric.axis))


def _differences(combinations: Sequence[Combination], metrics: Sequence[Metric]) -> dict[str, list[list[Entry]]]:
    """Every combination but the first, against it; all their comparisons are one family for Holm's correction."""
    first, *others = combinations
    pairs = [(other, metric) for other in others for metric in metrics]
    differences = [paired_difference(metric.of(other), metric.of(first)) for other, metric in pairs]
    rows: dict[str, list[list[Entry]]] = {other.name: [] for other in others}
    adjusted = holm([difference.p if difference else None for difference in differences])
    for (other, metric), difference, p in zip(pairs, differences, adjusted, strict=True):
        tested = "no test" if p is None else "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        text = difference.mean.text(places(metric.unit), signed=True) if difference else ""
        rows[other.name].append(_cell(text, f"{verdict(difference, p)} · {tested}") if difference else [])
    return rows


def _common(names: Sequence[str]) -> str:
    """What the names share, without the word seed at their end."""
    if len(names) == 1:
        return names[0]
    pairs = zip(min(names), max(names), strict=False)
    shared = "".join(a for a, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return re.sub(r"[-_ ./]*(seed[-_= ]*\d*)?$", "", shared) or ", ".join(names)
