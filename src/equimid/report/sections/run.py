"""What was run: the settings, how far the training came, and its curves."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equimid.report import figures
from equimid.report.blocks import Block, Entry, Facts, Fold, Plot, Plots, Row, Section, Table, Text, heading
from equimid.report.figures import Line
from equimid.report.formatting import plain, words
from equimid.report.read_run import Run
from equimid.report.sections.plots import line_plot
from equimid.report.series import Series, legend

__all__ = ["addons_of", "run_section", "training_section"]

# what a reader asks first: its name on the page, its key in the resolved configuration
SETTINGS = {
    "model": "model", "weights": "weights", "recipe": "recipe", "data": "data.source", "backbone": "backbone.name",
    "image size": "backbone.image_size", "patch size": "backbone.patch_size", "width": "backbone.embed_dim",
    "depth": "backbone.depth", "heads": "backbone.num_heads", "initial weights": "backbone.init",
    "CLS enters after block": "backbone.cls_layer", "method": "method.name", "SER weight": "ser.weight",
    "SER temperature": "ser.temperature", "SER layers": "ser.layers", "SER fraction of the batch": "ser.fraction",
    "batch size": "train.batch_size", "epochs": "train.epochs", "seed": "seed",
}  # fmt: skip
FOREIGN = ("model", "weights")  # what a network of others is told by
# plots of curves by what stands before the "/" of the column
PANELS = {"loss": "Loss", "gradient": "Gradient norm", "feature": "Features", "": "Schedule and speed"}

Rows = dict[str, list[str]]  # {label: a value for each run}


def run_section(runs: Sequence[Run]) -> Section:
    """The settings asked for first, then all; of several runs what differs as a table, apart from what does not."""
    rows = _first(runs) | (_others(runs) if len(runs) > 1 else {})
    trained = [run.trained_here for run in runs]
    first = trained.index(True) if any(trained) else 0
    different = {label: values for label, values in rows.items() if _differs(label, values, trained)}
    same = {label: values for label, values in rows.items() if label not in different}
    blocks: list[Block] = []
    where = "every run" if all(trained) else "the runs trained here"
    for what, part in (("What differs", different), (f"The same in {where}", same)):
        if not part:
            continue
        if len(runs) > 1:
            blocks.append(heading(what))
        if len(runs) > 1 and len(blocks) == 1:  # the first part as a table: the names of the runs are its columns
            lines = [Row(label, [[Entry(value)] for value in values]) for label, values in part.items()]
            blocks.append(Table(what, "Setting", [run.name for run in runs], lines, style="settings"))
        else:
            blocks.append(Facts([(label, values[first]) for label, values in part.items()]))
    blocks += [Fold(f"All settings of {run.name}: {run.file}", [Text(run.text, "code")]) for run in runs]
    return Section("run", "What was run", blocks)


def addons_of(run: Run) -> str:
    """Names and weights in words."""
    if not run.trained_here:
        return "–"
    return ", ".join(f"{name} (weight {plain(weight)})" for name, weight in run.addons.items()) or "none"


def _first(runs: Sequence[Run]) -> Rows:
    rows: Rows = {}
    trained = any(run.trained_here for run in runs)
    for label, key in SETTINGS.items():
        if any(run.setting(key) is not None for run in runs) or (trained and key == "ser.weight"):
            off = "off" if key == "ser.weight" else "–"
            rows[label] = [
                off if run.trained_here and run.setting(key) is None else plain(run.setting(key)) for run in runs
            ]
        if trained and key == "data.source":
            rows["images"] = [_images(run.counts) for run in runs]
    if trained:
        rows["add-ons"] = [addons_of(run) for run in runs]
        rows["views of an image"] = [run.views or "–" for run in runs]
        rows["steps done"] = [f"{step:,.0f}" if (step := _last(run, "step")) else "–" for run in runs]
        rows["time"] = [_time(seconds) if (seconds := _last(run, "seconds")) else "–" for run in runs]
    return rows


def _others(runs: Sequence[Run]) -> Rows:
    """What else differs between runs that both have it: a group of settings that only some have is another group."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in SETTINGS.values())
    several = [key for key in keys if len({str(settings[key]) for settings in flat if key in settings}) > 1]
    return {key: [plain(settings.get(key)) for settings in flat] for key in several}


def _differs(label: str, values: Sequence[str], trained: Sequence[bool]) -> bool:
    """A network of others has no settings of training: without them it does not differ."""
    if label not in FOREIGN and any(trained):
        values = [value for value, here in zip(values, trained, strict=True) if here]
    return len(set(values)) > 1


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _images(counts: Mapping[str, int]) -> str:
    if "usable" not in counts or "listed" not in counts:
        return "–"
    return f"{counts['usable']:,}, {counts['listed'] - counts['usable']:,} left out"


def _last(run: Run, column: str) -> float | None:
    return next(reversed(run.curves.get(column, ([], []))[1]), None)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, more = divmod(minutes, 60)
    return f"{hours} h {more:02d} min" if hours else f"{minutes} min {rest:02d} s"


def training_section(runs: Sequence[Run], series: Sequence[Series]) -> Section:
    """The curves of the runs that were trained here, a small plot for each column of the metrics."""
    trained = [run for run in runs if run.trained_here]
    blocks: list[Block] = [
        Text("has no metrics yet: its metrics.csv is missing or empty", "note", run.name)
        for run in trained
        if _last(run, "step") is None
    ]
    groups: dict[str, list[Plot]] = {prefix: [] for prefix in PANELS}
    columns = dict.fromkeys(c for run in trained for c in run.curves if c not in ("step", "epoch", "seconds"))
    for number, column in enumerate(columns):
        if plot := _curves(f"curve-{number}", column, trained):
            groups.setdefault(column.rpartition("/")[0], []).append(plot)
    if any(groups.values()) and len(trained) > 1:
        blocks.append(legend([s for s in series if s.own and s.run in trained], "run"))
    for prefix, plots in groups.items():
        if plots:
            blocks += [heading(PANELS.get(prefix, words(prefix))), Plots(plots)]
    return Section("training", "Training", blocks)


def _curves(name: str, column: str, runs: Sequence[Run]) -> Plot | None:
    """A column of the metrics over the steps; gradients that span much are on a logarithmic scale."""
    lines, bad = [], 0
    for run in runs:
        steps, values = run.curves.get(column, ([], []))
        points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
        bad += len(values) - len(points)
        if points:
            x, y = figures.thin(*zip(*points, strict=True))
            colour, marker = figures.colour_and_marker(run.index)
            lines.append((run.name, Line(x, y, colour, marker if len(runs) > 1 or len(x) == 1 else "")))
    if not lines and not bad:
        return None
    drawn = [y for _, line in lines for y in line.y]
    log = column.startswith("gradient/") and min(drawn, default=0.0) > 0 and max(drawn) > 30 * min(drawn)
    note = " (logarithmic)" * log + (f" ({bad:,} values not finite, left out)" if bad else "")
    caption = words(column.rpartition("/")[2])
    return line_plot(name, f"{column} by step", caption, lines, None, note=note, x_label="step", log=log, height=1.8)
