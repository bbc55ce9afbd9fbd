"""The page of a sweep, and the file that tells what it holds."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from equimid.errors import UserError
from equimid.report.blocks import Code, Facts, Section
from equimid.report.folder import read_run
from equimid.report.page import write_page
from equimid.report.seeds import Group, compare

__all__ = ["SCHEMA", "SweepPlan", "read_sweep", "write_sweep_report"]

SCHEMA = 1  # of sweep.yaml


@dataclass(frozen=True)
class SweepPlan:
    """What sweep.yaml holds.

    settings:     of every run, key=value
    vary:         {key: values}, the first of each is the baseline
    combinations: {folder: name}, the baseline first
    finished:     runs as "folder/seed=0"
    failed:       {run: why}
    """

    recipe: str
    data: str
    settings: Sequence[str]
    seeds: Sequence[int]
    vary: Mapping[str, Sequence[str]]
    combinations: Mapping[str, str] = field(default_factory=dict)
    finished: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def read_sweep(out: Path) -> SweepPlan:
    """The folder's sweep.yaml.

    Raises:
        UserError: there is none, it cannot be read, or a newer version wrote it.
    """
    file = out / "sweep.yaml"
    if not file.is_file():
        raise UserError(f"{out} is not a sweep: it has no sweep.yaml; give the folder that 'equimid sweep' wrote")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise UserError(
                f"{file} was written by a newer version (schema {content['schema']}, this one reads {SCHEMA}); "
                "update equimid"
            )
        return SweepPlan(**{key: value for key, value in content.items() if key in SweepPlan.__dataclass_fields__})
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not hold a sweep ({' '.join(str(error).split())}); restore it") from None


def write_sweep_report(out: Path) -> Path:
    """Write FOLDER/report.html on the sweep in `out`, finished or not, and return its path.

    Raises:
        UserError: the folder holds no sweep, or a file in it cannot be read.
    """
    plan = read_sweep(out)
    groups = []
    for folder, name in plan.combinations.items():
        runs, missing = {}, []
        for seed in plan.seeds:
            run, place = f"{folder}/seed={seed}", out / folder / f"seed={seed}"
            if run in plan.finished and (place / "config.yaml").is_file():
                runs[seed] = read_run(place, run, seed)
            else:
                missing.append((f"{name} seed {seed}", _unfinished(plan, run)))
        groups.append(Group(name, runs, missing))
    done = sum(len(group.runs) for group in groups)
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
        summary=_summary(groups),
        sections=[
            Section("run", "What was run", [Facts(facts), Code(_command(plan, out))]),
            Section("seeds", "What it came to", compare(groups)),
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


def _summary(groups: Sequence[Group]) -> str:
    counted = sorted({len(group.runs) for group in groups})
    n = " to ".join(map(str, [counted[0], counted[-1]][: len(counted)]))
    settings = f"{len(groups)} combinations of settings" if len(groups) > 1 else "One combination of settings"
    return f"{settings}, n = {n} seeds each, measured on frozen features."
