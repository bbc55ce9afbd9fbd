"""The page of a sweep, and the file that tells what it holds."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from equimid.report.blocks import Pairs, Section, Text
from equimid.report.page import write_page
from equimid.report.read_run import read_run
from equimid.report.seeds import Combination, compare
from equimid.sweep_plan import SCHEMA, SweepPlan, read_sweep

__all__ = ["SCHEMA", "SweepPlan", "read_sweep", "write_sweep_report"]


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
        combinations.append(Combination(name, runs, missing))
    done = sum(len(c.runs) for c in combinations)
    facts = [
        ("recipe", plan.recipe),
        ("data", plan.data),
        ("varied", "; ".join(f"{key} {', '.join(values)}" for key, values in plan.vary.items()) or "the seed alone"),
        ("seeds", ", ".join(map(str, plan.seeds))),
        ("runs", f"{done} of {len(plan.combinations) * len(plan.seeds)} finished"),
    ]
    return write_page(
        out / "report.html",
        title=f"{plan.recipe} on {plan.data}: a sweep",
        summary=_summary(combinations),
        sections=[
            Section("run", "What was run", [Pairs(facts), Text(_command(plan, out), "code")]),
            Section("seeds", "What it came to", compare(combinations)),
        ],
    )


def _command(plan: SweepPlan, out: Path) -> str:
    """What makes the sweep, or goes on with it."""
    words = ["equimid", "sweep", plan.recipe, "--data", plan.data]
    for key, values in plan.vary.items():
        words += ["--vary", f"{key}={','.join(values)}"]
    # --seeds after --vary: a setting after --vary would be taken for one more to vary
    words += ["--seeds", *(str(seed) for seed in plan.seeds), "--out", str(out)]
    return shlex.join([*words, *plan.settings])


def _unfinished(plan: SweepPlan, run: str) -> str:
    return f"failed: {plan.failed[run]}" if run in plan.failed else "is not finished: run the sweep's command again"


def _summary(combinations: Sequence[Combination]) -> str:
    counted = sorted({len(c.runs) for c in combinations})
    n = " to ".join(map(str, [counted[0], counted[-1]][: len(counted)]))
    settings = (
        f"{len(combinations)} combinations of settings" if len(combinations) > 1 else "One combination of settings"
    )
    return f"{settings}, n = {n} seeds each, measured on frozen features."
