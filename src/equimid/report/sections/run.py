"""What was run: the settings, how far the training came, and its curves."""

import math
from collections.abc import Callable, Mapping, Sequence

from equimid.report import figures
from equimid.report.blocks import Block, Entry, Figure, Figures, Group, Pairs, Section, Table, TableRow, Text
from equimid.report.figures import Line
from equimid.report.formatting import plain
from equimid.report.read_run import Run
from equimid.report.series import grouped
from equimid.report.views import key, line_figure

__all__ = ["addons_of", "run_section", "training_section"]

# plots of curves by what stands before the "/" of the column
PANELS = {"loss": "Loss", "gradient": "Gradient norm", "feature": "Features", "": "Schedule and speed"}

FOREIGN = ("model", "weights")  # what names a network of others
Rows = dict[str, list[str]]  # {label: a value for each run}


def addons_of(run: Run) -> str:
    """Names and weights."""
    return ", ".join(f"{name} (weight {plain(weight)})" for name, weight in run.addons.items()) or "none"


def _images(run: Run) -> str:
    usable, listed = run.counts.get("usable"), run.counts.get("listed")
    return "–" if usable is None or listed is None else f"{usable:,}, {listed - usable:,} left out"


def _steps(run: Run) -> str:
    return f"{step:,.0f}" if (step := run.last("step")) else "–"


def _time(run: Run) -> str:
    minutes, rest = divmod(round(run.last("seconds") or 0.0), 60)
    hours, more = divmod(minutes, 60)
    known = f"{hours} h {more:02d} min" if hours else f"{minutes} min {rest:02d} s"
    return known if run.last("seconds") else "–"


def _ser_weight(run: Run) -> str:
    weight = run.setting("ser.weight")
    return "off" if weight is None else plain(weight)


# what a reader asks first: its name on the page, and its key in the resolved configuration, or what a trained run says
FACTS: Mapping[str, str | Callable[[Run], str]] = {
    "model": "model", "weights": "weights", "recipe": "recipe", "data": "data.source", "images": _images,
    "backbone": "backbone.name", "image size": "backbone.image_size", "patch size": "backbone.patch_size",
    "width": "backbone.embed_dim", "depth": "backbone.depth", "heads": "backbone.num_heads",
    "initial weights": "backbone.init", "CLS enters after block": "backbone.cls_layer", "method": "method.name",
    "SER weight": _ser_weight, "SER temperature": "ser.temperature", "SER layers": "ser.layers",
    "SER fraction of the batch": "ser.fraction", "batch size": "train.batch_size", "epochs": "train.epochs",
    "seed": "seed", "add-ons": addons_of, "views of an image": lambda run: run.views or "–", "steps done": _steps,
    "time": _time,
}  # fmt: skip


def run_section(runs: Sequence[Run]) -> Section:
    """Facts first, then all settings; of several runs what differs as a table, apart from what does not."""
    rows = _first(runs) | (_others(runs) if len(runs) > 1 else {})
    trained = [run.trained_here for run in runs]
    first = trained.index(True) if any(trained) else 0
    different = {label: values for label, values in rows.items() if _differs(label, values, trained)}
    same = {label: values for label, values in rows.items() if label not in different}
    facts = Pairs([(label, values[first]) for label, values in same.items()])
    blocks: list[Block] = [facts]
    if len(runs) > 1:
        title = f"The same in {'every run' if all(trained) else 'the runs trained here'}"
        columns = [run.name for run in runs]

        def table(what: str, part: Rows) -> Group:
            lines = [TableRow(label, [[Entry(value)] for value in values]) for label, values in part.items()]
            return Group(what, [Table(what, "Setting", columns, lines, style="settings")])

        # the names of the runs stand in a table: where nothing differs, of what is the same
        blocks = [table("What differs", different), Group(title, [facts])] if different else [table(title, same)]
    blocks += [Group(f"All settings of {run.name}: {run.file}", [Text(run.text, "code")], folded=True) for run in runs]
    return Section("run", "What was run", blocks)


def _first(runs: Sequence[Run]) -> Rows:
    rows: Rows = {}
    for label, read in FACTS.items():
        values = [
            run.setting(read) if isinstance(read, str) else read(run) if run.trained_here else None for run in runs
        ]
        if any(value is not None for value in values):
            rows[label] = [plain(value) for value in values]
    return rows


def _others(runs: Sequence[Run]) -> Rows:
    """What else differs between runs that both have it: a group of settings that only some have is another group."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in (*FACTS.values(), "ser.weight"))
    several = [key for key in keys if len({str(run.settings[key]) for run in runs if key in run.settings}) > 1]
    return {key: [plain(run.setting(key)) for run in runs] for key in several}


def _differs(label: str, values: Sequence[str], trained: Sequence[bool]) -> bool:
    """A network of others has no settings of training: without them it does not differ."""
    if label not in FOREIGN and any(trained):
        values = [value for value, here in zip(values, trained, strict=True) if here]
    return len(set(values)) > 1


def training_section(runs: Sequence[Run]) -> Section:
    """The curves of the runs that were trained here, a small plot for each column of the metrics."""
    trained = [run for run in runs if run.trained_here]
    columns = list(dict.fromkeys(c for run in trained for c in run.curves if c not in ("step", "epoch", "seconds")))
    panels = grouped(sorted(columns, key=_panel), lambda column: column.rpartition("/")[0])
    plots = {
        PANELS.get(prefix, prefix.replace("_", " ")): [
            plot for column in part if (plot := _curves(f"curve-{columns.index(column)}", column, trained))
        ]
        for prefix, part in panels.items()
    }
    looks = [(run.name, *figures.colour_and_marker(run.index)) for run in trained]
    legend = key("run", [Line(name, colour=colour, marker=marker) for name, colour, marker in looks])
    return Section(
        "training",
        "Training",
        [
            *(
                Text("has no metrics yet: its metrics.csv is missing or empty", "note", run.name)
                for run in trained
                if run.last("step") is None
            ),
            *([legend] if len(trained) > 1 and any(plots.values()) else []),
            *(Group(title, [Figures(items)]) for title, items in plots.items()),
        ],
    )


def _panel(column: str) -> int:
    prefix = column.rpartition("/")[0]
    return list(PANELS).index(prefix) if prefix in PANELS else len(PANELS)


def _curves(name: str, column: str, runs: Sequence[Run]) -> Figure | None:
    """A column of the metrics over the steps; gradients that span much are on a logarithmic scale."""
    lines, bad = [], 0
    for run in runs:
        steps, values = run.curves.get(column, ([], []))
        points = [(x, y) for x, y in zip(steps, values, strict=True) if math.isfinite(y)]
        bad += len(values) - len(points)
        if points:
            x, y = figures.thin(*zip(*points, strict=True))
            colour, marker = figures.colour_and_marker(run.index)
            lines.append(Line(run.name, x, y, colour, marker if len(runs) > 1 or len(x) == 1 else ""))
    if not lines and not bad:
        return None
    drawn = [y for line in lines for y in line.y]
    log = column.startswith("gradient/") and min(drawn, default=0.0) > 0 and max(drawn) > 30 * min(drawn)
    note = " (logarithmic)" * log + (f" ({bad:,} values not finite, left out)" if bad else "")
    caption = column.rpartition("/")[2].replace("_", " ")
    return line_figure(name, f"{column} by step", caption, lines, None, note=note, x_label="step", log=log, height=1.8)
