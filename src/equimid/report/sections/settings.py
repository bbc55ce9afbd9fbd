"""What was run: the settings, and how far the training came."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from equimid.report.blocks import Block, Code, Entry, Facts, Fold, Heading, Row, Section, Table
from equimid.report.formatting import plain
from equimid.report.read_run import Run

__all__ = ["addons_of", "run_section"]

# what a reader asks first: its name on the page, its key in the resolved configuration
SETTINGS = {
    "model": "model",
    "weights": "weights",
    "recipe": "recipe",
    "data": "data.source",
    "backbone": "backbone.name",
    "image size": "backbone.image_size",
    "patch size": "backbone.patch_size",
    "width": "backbone.embed_dim",
    "depth": "backbone.depth",
    "heads": "backbone.num_heads",
    "initial weights": "backbone.init",
    "CLS enters after block": "backbone.cls_layer",
    "method": "method.name",
    "SER weight": "ser.weight",
    "SER temperature": "ser.temperature",
    "SER layers": "ser.layers",
    "SER fraction of the batch": "ser.fraction",
    "batch size": "train.batch_size",
    "epochs": "train.epochs",
    "seed": "seed",
}

FOREIGN = ("model", "weights")  # what a network of others is told by

Rows = list[tuple[str, list[str]]]


def run_section(runs: Sequence[Run]) -> Section:
    """The settings asked for first, then all of them; with several runs those that differ apart from those that do
    not."""
    blocks: list[Block] = []
    if len(runs) == 1:
        blocks.append(Facts([(label, values[0]) for label, values in _first(runs)]))
    else:
        rows = [*_first(runs), *_others(runs)]
        names = [run.name for run in runs]
        same = "The same in every run" if all(run.trained_here for run in runs) else "The same in the runs trained here"
        parts = {
            "What differs": [row for row in rows if _differs(row, runs)],
            same: [row for row in rows if not _differs(row, runs)],
        }
        for heading, part in parts.items():
            if not part:
                continue
            blocks.append(Heading(heading))
            if len(blocks) == 1:  # the first part as a table: the names of the runs are its columns
                table = [Row(label, [[Entry(value)] for value in values]) for label, values in part]
                blocks.append(Table(heading, "Setting", names, table, style="settings"))
            else:
                first = [run.trained_here for run in runs].index(True) if any(r.trained_here for r in runs) else 0
                blocks.append(Facts([(label, values[first]) for label, values in part]))
    blocks += [Fold(f"All settings of {run.name}: {run.file}", [Code(run.text)]) for run in runs]
    return Section("run", "What was run", blocks)


def addons_of(run: Run) -> str:
    """Names and weights in words."""
    if not run.trained_here:
        return "–"
    return ", ".join(f"{name} (weight {plain(weight)})" for name, weight in run.addons.items()) or "none"


def _first(runs: Sequence[Run]) -> Rows:
    rows: Rows = []
    trained = any(run.trained_here for run in runs)
    for label, key in SETTINGS.items():
        if any(run.setting(key) is not None for run in runs) or (trained and key == "ser.weight"):
            rows.append((label, [_setting(run, key) for run in runs]))
        if trained and key == "data.source":
            rows.append(("images", [_images(run.counts) for run in runs]))
    if trained:
        rows.append(("add-ons", [addons_of(run) for run in runs]))
        rows.append(("views of an image", [run.views or "–" for run in runs]))
        rows.append(("steps done", [_last(run, "step") for run in runs]))
        rows.append(("time", [_last(run, "seconds") for run in runs]))
    return rows


def _differs(row: tuple[str, list[str]], runs: Sequence[Run]) -> bool:
    """A network of others has no settings of training: without them it does not differ."""
    label, values = row
    some = [value for value, run in zip(values, runs, strict=True) if run.trained_here]
    return len(set(values if label in FOREIGN or not some else some)) > 1


def _others(runs: Sequence[Run]) -> Rows:
    """What else differs between runs that both have it."""
    flat = [dict(_flatten(run.config)) for run in runs]
    rows: Rows = []
    for key in dict.fromkeys(key for settings in flat for key in settings):
        # a block that only some runs have (ser, another method's) does not differ, it is another block
        values = {str(settings[key]) for settings in flat if key in settings}
        if key not in SETTINGS.values() and len(values) > 1:
            rows.append((key, [plain(settings.get(key)) for settings in flat]))
    return rows


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(run: Run, key: str) -> str:
    if key == "ser.weight" and run.trained_here and run.config.get("ser") is None:
        return "off"
    return plain(run.setting(key))


def _images(counts: Mapping[str, int]) -> str:
    if "usable" not in counts or "listed" not in counts:
        return "–"
    return f"{counts['usable']:,}, {counts['listed'] - counts['usable']:,} left out"


def _last(run: Run, column: str) -> str:
    values = run.curves.get(column, ([], []))[1]
    if not values:
        return "–"
    if column == "step":
        return f"{values[-1]:,.0f}"
    minutes, seconds = divmod(round(values[-1]), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
