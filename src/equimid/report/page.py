"""The pages of runs and of sweeps: read the folders, say what was run, fill the template. Nothing is measured here."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from equimid.errors import UserError
from equimid.files import write_text
from equimid.records import Subject
from equimid.report.blocks import Pairs, Section, Text, drawn, template
from equimid.report.explorer import Explorer, explorer
from equimid.report.formatting import measured, plain
from equimid.report.read_run import Run, names, read_run
from equimid.report.sections import all_sections
from equimid.report.sections.run import addons_of
from equimid.report.seeds import RunsOverSeeds, compare
from equimid.sweep_plan import SweepPlan, read_sweep

__all__ = ["write_report", "write_sweep_report"]


def write_report(runs: Sequence[Path], out: Path, title: str | None = None) -> Path:
    """Write one self-contained HTML page on one folder, or on several compared, and return its path.

    Args:
        runs:  folders of runs, and of measurements of networks of others.
        out:   the page.
        title: by default the run's name, or how many there are.

    Raises:
        UserError: a folder is neither, or a file in it cannot be read.
    """
    paths = list({Path(path).resolve(): Path(path) for path in runs}.values())
    if not paths:
        raise UserError("no run was given; name at least one run folder")
    read = [read_run(path, name, i) for i, (path, name) in enumerate(zip(paths, names(paths), strict=True))]
    explore = explorer(read)
    return _write(
        out,
        title=title or (read[0].name if len(read) == 1 else f"{len(read)} runs compared"),
        summary=_summary(read),
        caution=_unmatched(read),
        sections=all_sections(read, Section("explore", "Explore", html=explore.html if explore else "")),
        explore=explore,
    )


def write_sweep_report(out: Path) -> Path:
    """Write FOLDER/report.html on the sweep in `out`, finished or not, and return its path.

    Raises:
        UserError: the folder holds no sweep, or a file in it cannot be read.
    """
    plan = read_sweep(out)
    combinations = []
    for folder, name in plan.combinations.items():
        runs, missing = {}, []
        for seed in plan.seeds:
            run, place = f"{folder}/seed={seed}", out / folder / f"seed={seed}"
            if run in plan.finished and (place / "config.yaml").is_file():
                runs[seed] = read_run(place, run, seed)
            else:
                missing.append((f"{name} seed {seed}", _unfinished(plan, run)))
        combinations.append(RunsOverSeeds(name, runs, missing))
    done = sum(len(c.runs) for c in combinations)
    facts = [
        ("recipe", plan.recipe),
        ("data", plan.data),
        ("varied", "; ".join(f"{key} {', '.join(values)}" for key, values in plan.vary.items()) or "the seed alone"),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("runs", f"{done} of {len(plan.combinations) * len(plan.seeds)} finished"),
    ]
    return _write(
        out / "report.html",
        title=f"{plan.recipe} on {plan.data}: a sweep",
        summary=_sweep_summary(combinations),
        sections=[
            Section("run", "What was run", [Pairs(facts), Text(_command(plan, out), "code")]),
            Section("seeds", "What it came to", compare(combinations)),
        ],
    )


def _write(
    out: Path,
    *,
    title: str,
    summary: str,
    sections: Sequence[Section],
    caution: str | None = None,
    explore: Explorer | None = None,
) -> Path:
    """Write a page of the sections that have something to show beside its place, rename it, and return its path.

    caution: what to know before any number is read
    explore: whose section is among them, for its script and its style

    Raises:
        UserError: `out` is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder, expected the name of the page; write to {out / 'report.html'}")
    shown = [replace(section, blocks=drawn(section.blocks)) for section in sections]
    text = template("page.html.j2").render(
        title=title,
        summary=summary,
        caution=caution,
        sections=[section for section in shown if section.blocks or section.html],
        explorer=explore,
        version=version("equimid"),
        today=date.today().isoformat(),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out


def _unmatched(runs: Sequence[Run]) -> str | None:
    """What to say where runs saw different numbers of views: a difference is then not their method's alone."""
    settings = {run.name: run.views for run in runs if run.views}
    if len(set(settings.values())) < 2:
        return None
    each = "; ".join(f"{name} {setting}" for name, setting in settings.items())
    return (
        f"These runs were trained with different views of every image ({each}). More views cost more and help by "
        "themselves: compare runs of one view setting before crediting a method."
    )


def _summary(runs: Sequence[Run]) -> str:
    if len(runs) > 1:
        reached = [f"{run.name} {_reached(run, run.subject) or '(no accuracy yet)'}" for run in runs]
        return f"Runs side by side, measured on frozen features: {', '.join(reached)}."
    run = runs[0]
    text = _origin(run)
    score, random = _reached(run, run.subject), _reached(run, Subject.RANDOM)
    if score is None:
        return f"{text}; {'not evaluated yet' if not run.records else 'without a measured accuracy'}."
    beside = f"; a random network has {random}" if random and run.subject != Subject.RANDOM else ""
    return f"{text}: {score} on frozen features{beside}."


def _origin(run: Run) -> str:
    """What network it is."""
    if not run.trained_here:
        return f"{run.model}, {run.setting('weights') or 'unknown'} weights"
    trained = plain(run.setting("method.name") or "an unnamed method")
    if run.addons:
        trained += f" with {addons_of(run)}"
    backbone = run.setting("backbone.name") or "A backbone"
    return f"{backbone}, pretrained on {run.setting('data.source') or 'unlabelled images'} by {trained}"


def _reached(run: Run, subject: str) -> str | None:
    """The subject's linear top-1, or else its kNN top-1."""
    for evaluation in ("linear", "knn"):
        for r in run.records:
            if (r.evaluation, r.metric, r.subject) == (evaluation, "top1", subject):
                return measured(r)
    return None


def _command(plan: SweepPlan, out: Path) -> str:
    """What makes the sweep, or goes on with it."""
    command = ["equimid", "sweep", plan.recipe, "--data", plan.data]
    for key, values in plan.vary.items():
        command += ["--vary", f"{key}={','.join(values)}"]
    # --seeds after --vary: a setting after --vary would be taken for one more to vary
    command += ["--seeds", *(str(seed) for seed in plan.seeds), "--out", str(out)]
    return shlex.join([*command, *plan.settings])


def _unfinished(plan: SweepPlan, run: str) -> str:
    return f"failed: {plan.failed[run]}" if run in plan.failed else "is not finished: run the sweep's command again"


def _sweep_summary(combinations: Sequence[RunsOverSeeds]) -> str:
    counted = sorted({len(c.runs) for c in combinations})
    n = " to ".join(map(str, [counted[0], counted[-1]][: len(counted)]))
    settings = (
        f"{len(combinations)} combinations of settings" if len(combinations) > 1 else "One combination of settings"
    )
    return f"{settings}, n = {n} seeds each, measured on frozen features."
