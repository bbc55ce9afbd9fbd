"""What the training wrote down: one small plot per column of the metrics."""

import math
from collections.abc import Sequence

from equimid.report import figures
from equimid.report.blocks import Block, Heading, Note, Plot, Plots, Section
from equimid.report.figures import Line
from equimid.report.formatting import words
from equimid.report.read_run import Run
from equimid.report.series import Series, legend

__all__ = ["training_section"]

PANELS = {"loss": "Loss", "gradient": "Gradient norm", "feature": "Features", "": "Schedule and speed"}


def training_section(runs: Sequence[Run], series: Sequence[Series]) -> Section:
    """The curves of the runs that were trained here; networks of others have none."""
    trained = [run for run in runs if run.trained_here]
    blocks: list[Block] = [
        Note("has no metrics yet: its metrics.csv is missing or empty", run.name)
        for run in trained
        if not run.curves.get("step", ([],))[0]
    ]
    groups = _curve_groups(trained)
    if groups and len(trained) > 1:
        blocks.append(legend([s for s in series if s.own and s.run in trained], "run"))
    for heading, plots in groups.items():
        blocks += [Heading(heading), Plots(plots)]
    return Section("training", "Training", blocks)


def _curve_groups(runs: Sequence[Run]) -> dict[str, list[Plot]]:
    """The plots, gathered by what stands before the '/' of the column's name."""
    columns = dict.fromkeys(c for run in runs for c in run.curves if c not in ("step", "epoch", "seconds"))
    groups: dict[str, list[Plot]] = {}
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
        groups.setdefault(prefix, []).append(Plot(words(name), svg, note))
    order = [*PANELS, *(prefix for prefix in groups if prefix not in PANELS)]
    return {PANELS.get(prefix, words(prefix)): groups[prefix] for prefix in order if prefix in groups}
