"""The page: read the folders of runs, say what was run, fill the template. Nothing is measured here."""

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from equimid.errors import UserError
from equimid.report import sections
from equimid.report.folder import Run, names, read_run
from equimid.report.sections import measured, plain

__all__ = ["write_report"]

# what a reader asks first: its name on the page, its key in the resolved configuration
SETTINGS = {
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
    "SER share of the batch": "ser.share",
    "batch size": "train.batch_size",
    "epochs": "train.epochs",
    "seed": "seed",
}


def write_report(runs: Sequence[Path], out: Path, title: str | None = None) -> Path:
    """Write one self-contained HTML page on one run, or on several compared, and return its path.

    Raises:
        UserError: a folder is not a run, or a file in it cannot be read.
    """
    paths = list({Path(path).resolve(): Path(path) for path in runs}.values())
    if not paths:
        raise UserError("no run was given; name at least one run folder")
    found = [read_run(path, name, i) for i, (path, name) in enumerate(zip(paths, names(paths), strict=True))]
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = template.from_string(files("equimid.report").joinpath("page.html.j2").read_text(encoding="utf-8"))
    series = sections.all_series(found)
    text = page.render(
        title=title or (found[0].name if len(found) == 1 else f"{len(found)} runs compared"),
        summary=_summary(found),
        unmatched=_unmatched(found),
        runs=found,
        settings=_settings(found),
        legend=sections.legend([s for s in series if s.subject == "backbone"], "run"),
        evaluations=sections.evaluations(series),
        equivariance=sections.equivariance(series),
        curves=sections.curve_groups(found),
        pictures=sections.pictures(series),
        version=version("equimid"),
        today=date.today().isoformat(),
    )
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected the name of the page; write to {out / 'report.html'}")
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(out.name + ".tmp")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, out)
    return out


def _settings(runs: Sequence[Run]) -> dict[str, list[tuple[str, list[str]]]]:
    """The settings asked for first; with several runs those that differ apart from those that do not."""
    rows = []
    for label, key in SETTINGS.items():
        if any(run.setting(key) is not None for run in runs) or key == "ser.weight":
            rows.append((label, [_setting(run, key) for run in runs]))
        if key == "data.source":
            rows.append(("images", [_images(run.counts) for run in runs]))
    rows.append(("add-ons", [_addons(run) for run in runs]))
    rows.append(("views of an image", [run.views or "–" for run in runs]))
    rows.append(("steps done", [_last(run, "step") for run in runs]))
    rows.append(("time", [_last(run, "seconds") for run in runs]))
    if len(runs) == 1:
        return {"Settings": rows}
    flat = [dict(_flatten(run.config)) for run in runs]
    for key in dict.fromkeys(key for settings in flat for key in settings):
        # a block that only some runs have (ser, another method's) does not differ, it is another block
        values = {str(settings[key]) for settings in flat if key in settings}
        if key not in SETTINGS.values() and len(values) > 1:
            rows.append((key, [plain(settings.get(key)) for settings in flat]))
    differ = [row for row in rows if len(set(row[1])) > 1]
    same = [row for row in rows if len(set(row[1])) == 1]
    return {"What differs": differ, "The same in every run": same}


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _setting(run: Run, key: str) -> str:
    if key == "ser.weight" and run.config.get("ser") is None:
        return "off"
    return plain(run.setting(key))


def _addons(run: Run) -> str:
    return ", ".join(f"{name} (weight {plain(weight)})" for name, weight in run.addons.items()) or "none"


def _unmatched(runs: Sequence[Run]) -> str | None:
    """What to say where runs saw different numbers of views: a difference is then not their method's alone."""
    settings = {run.name: run.views for run in runs if run.views}
    if len(set(settings.values())) < 2:
        return None
    told = "; ".join(f"{name} {setting}" for name, setting in settings.items())
    return (
        f"These runs were trained with different views of every image ({told}). More views cost more and help by "
        "themselves: compare runs of one view setting before crediting a method."
    )


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


def _summary(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        reached = [f"{run.name} {_reached(run, 'backbone') or '(not evaluated yet)'}" for run in runs]
        return f"Runs side by side, measured on frozen features: {', '.join(reached)}."
    run = runs[0]
    trained = plain(run.setting("method.name") or "an unnamed method")
    if run.addons:
        trained += f" with {_addons(run)}"
    backbone = run.setting("backbone.name") or "A backbone"
    text = f"{backbone}, pretrained on {run.setting('data.source') or 'unlabelled images'} by {trained}"
    score, random = _reached(run, "backbone"), _reached(run, "random")
    if score is None:
        return f"{text}; not evaluated yet."
    return f"{text}: {score} on frozen features" + (f"; a random network has {random}." if random else ".")


def _reached(run: Run, subject: str) -> str | None:
    """The subject's linear top-1, or else its kNN top-1."""
    for evaluation in ("linear", "knn"):
        for r in run.records:
            if (r.evaluation, r.metric, r.subject) == (evaluation, "top1", subject):
                return measured(r)
    return None
