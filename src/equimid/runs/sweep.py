"""A sweep: one recipe with several values of some settings, each with several seeds; one page tells what differs.

Runs lie in FOLDER/<setting=value>/seed=<n>. `sweep.yaml` beside them holds what was asked for and how each run ended,
so that the same command goes on where it stopped, and another one with more seeds or values adds to the grid. A seed
changes all that is drawn: initial weights, order of the data, views, poses, and what the probes draw.
"""

import hashlib
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from equimid.config import Config, differences, flatten
from equimid.console import is_main_process
from equimid.data import open_source
from equimid.errors import UserError
from equimid.files import locked, write_text
from equimid.recipes import configured
from equimid.recipes.describe import written
from equimid.report import SweepPlan, read_sweep, write_sweep_report
from equimid.runs.pretrain import on_one_device, pretrain
from equimid.task import Task

__all__ = ["Sweep", "parse_vary", "run_sweep"]

logger = logging.getLogger("equimid")

_LONGEST = 150  # characters of a folder's name; file systems end at 255 bytes


@dataclass(frozen=True)
class Combination:
    """One value of every varied setting.

    Attributes:
        name:   "ser.weight=0.1 train.epochs=10", or the recipe where nothing is varied.
        values: {key: value as in a setting}.
        config: with the first seed.
    """

    name: str
    values: Mapping[str, str]
    config: Config

    @property
    def folder(self) -> str:
        """The name as a folder; where characters had to go, or it is long, a hash tells it from others."""
        plain = re.sub(r"=\[([^\[\]]*)\]", r"=\1", self.name).replace(" ", "_")
        safe = re.sub(r"[^A-Za-z0-9._=+,-]", "-", plain)
        if safe == plain and len(safe) <= _LONGEST:
            return safe
        return f"{safe[: _LONGEST - 9]}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


class Sweep(SweepPlan):
    """What was asked for, as configurations."""

    def configured(self, values: Mapping[str, str] | None = None) -> Config:
        """Its configuration with these values of the varied settings and the first seed."""
        varied = [f"{key}={value}" for key, value in (values or {}).items()]
        return configured(self.recipe, [*self.settings, f"data.source={self.data}", *varied, f"seed={self.seeds[0]}"])

    def grid(self) -> list[Combination]:
        """Every combination, the last setting varying fastest.

        Raises:
            UserError: an unknown setting, or values that do not go together.
        """
        combinations = []
        for chosen in itertools.product(*self.vary.values()):
            config = self.configured(dict(zip(self.vary, chosen, strict=True)))
            flat = flatten(config)
            values = {key: _as_setting(flat.get(key, text)) for key, text in zip(self.vary, chosen, strict=True)}
            name = " ".join(f"{key}={value}" for key, value in values.items()) or self.recipe
            combinations.append(Combination(name, values, config))
        return combinations


def run_sweep(
    recipe: str, data: str, seeds: Sequence[int], vary: Sequence[str], out: Path, settings: Sequence[str] = ()
) -> tuple[Path, list[str]]:
    """Run every combination with every seed, seed by seed, from where an earlier call stopped.

    Args:
        vary: "key=a,b" each: values are YAML scalars, or lists in brackets.

    Returns:
        The page that compares them, and for each run that failed its name and why.

    Raises:
        UserError: before anything runs, where a setting, a value, the data or the folder is wrong.
        KeyboardInterrupt: a run was stopped by a signal; its checkpoint is written.
    """
    wanted = _wanted(recipe, data, seeds, vary, settings)
    if (out / "config.yaml").exists():
        raise UserError(f"{out} is the folder of a run; a sweep needs one of its own, choose another --out")
    with locked(out):
        file = out / "sweep.yaml"
        sweep = _joined(Sweep(**vars(read_sweep(out))), wanted, out) if file.exists() else wanted
        grid = sweep.grid()
        for combination in grid:
            # a mistake that only the network shows, such as a layer that it does not have, is an error now
            config = on_one_device(combination.config)
            Task(config.backbone, config.method, config.addons, config.plan(), config.seed)
        open_source(data)
        sweep = replace(sweep, combinations={c.folder: c.name for c in grid})
        _save(sweep, file)
        runs = list(itertools.product(sweep.seeds, grid))
        for number, (seed, combination) in enumerate(runs, start=1):
            logger.info("%d of %d: %s seed %d", number, len(runs), combination.name, seed)
            sweep = _run_one(sweep, combination, seed, out)
            _save(sweep, file)
            if is_main_process():
                write_sweep_report(out)  # now and not only at the end: a sweep takes days
    named = {f"{c.folder}/seed={seed}": f"{c.name} seed {seed}" for seed, c in runs}
    return out / "report.html", [f"{named[run]}: {why}" for run, why in sweep.failed.items()]


def _run_one(sweep: Sweep, combination: Combination, seed: int, out: Path) -> Sweep:
    """Pretrain it, or see that it is finished; returns what the sweep has come to."""
    run = f"{combination.folder}/seed={seed}"
    finished, failed = [r for r in sweep.finished if r != run], {r: w for r, w in sweep.failed.items() if r != run}
    config = on_one_device(replace(combination.config, seed=seed))
    try:
        outcome = pretrain(config, out / run)
    except UserError as error:
        why = " ".join(str(error).split())
        logger.warning("%s seed %d failed: %s", combination.name, seed, why)
        return replace(sweep, finished=finished, failed={**failed, run: why})
    if outcome.stopped_by is not None:
        raise KeyboardInterrupt
    return replace(sweep, finished=[*finished, run], failed=failed)


def parse_vary(settings: Sequence[str]) -> dict[str, list[str]]:
    """{key: values} of "key=a,b" texts; commas inside brackets belong to a value.

    Raises:
        UserError: a text that is no such list, or a setting that is named twice or has a flag of its own.
    """
    vary: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        values = [value.strip() for value in re.split(r",(?![^\[]*\])", text)]
        if not equals or not key or not all(values):
            raise UserError(f"--vary {setting}: expected a setting and its values, such as --vary ser.weight=0,0.1,1")
        if key in ("seed", "data.source", "recipe"):
            flag = {"seed": "--seeds 0 1 2", "data.source": "--data", "recipe": "one sweep for each recipe"}[key]
            raise UserError(f"--vary {setting}: {key} is not varied here; use {flag}")
        if key in vary:
            raise UserError(f"--vary names {key} twice; give all its values at once, such as {key}={','.join(values)}")
        vary[key] = values
    return vary


def _wanted(recipe: str, data: str, seeds: Sequence[int], vary: Sequence[str], settings: Sequence[str]) -> Sweep:
    """What the command says, with values as the configuration has them.

    Raises:
        UserError: something is named twice, or the configurations cannot be built.
    """
    if not seeds:
        raise UserError("a sweep needs at least one seed; give --seeds 0 1 2")
    twice = [seed for place, seed in enumerate(seeds) if seed in seeds[:place]]
    if twice:
        raise UserError(f"--seeds names {twice[0]} twice; a run is not counted again, name every seed once")
    values = parse_vary(vary)
    for setting in settings:
        key = setting.partition("=")[0]
        if key == "seed" or key == "data.source" or key in values:
            flag = {"seed": "--seeds", "data.source": "--data"}.get(key, "--vary")
            raise UserError(f"{setting}: {flag} gives {key} already; leave one of them out")
    grid = Sweep(recipe, data, list(settings), list(seeds), values).grid()
    for seed in seeds:
        replace(grid[0].config, seed=seed)
    for key, texts in values.items():
        # in the grid's order, so as given: 0.10 and 0.1 are one value
        known = list(dict.fromkeys(c.values[key] for c in grid))
        if len(known) < len(texts):
            raise UserError(f"--vary {key}={','.join(texts)} names a value twice; name every value once")
        values[key] = known
    return Sweep(recipe, data, list(settings), list(seeds), values)


def _joined(before: Sweep, wanted: Sweep, out: Path) -> Sweep:
    """The folder's sweep with the seeds and values that were asked for beside its own.

    Raises:
        UserError: they differ in more than that.
    """
    named = [
        ("recipe", before.recipe, wanted.recipe),
        ("data", before.data, wanted.data),
        ("what is varied", ", ".join(sorted(before.vary)) or "nothing", ", ".join(sorted(wanted.vary)) or "nothing"),
    ]
    differing = {what: (old, new) for what, old, new in named if old != new}
    measured_anew = False
    if not differing:
        first = {key: values[0] for key, values in wanted.vary.items()}
        was, now = replace(before, seeds=wanted.seeds).configured(first), wanted.configured(first)
        differing = differences(was, now)
        measured_anew = was.evaluation != now.evaluation
    if differing:
        changes = "; ".join(f"{what} was {old} and is now {new}" for what, (old, new) in differing.items())
        raise UserError(f"{out} holds another sweep ({changes}); choose another --out or those settings")
    return replace(
        before,
        # numbers of two ways to measure are not set beside each other while the rest is measured anew
        finished=() if measured_anew else before.finished,
        settings=wanted.settings,
        seeds=_union(before.seeds, wanted.seeds),
        vary={key: _union(values, wanted.vary[key]) for key, values in before.vary.items()},
    )


def _union(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    return list(dict.fromkeys([*old, *new]))


def _as_setting(value: Any) -> str:
    """A resolved value as it is written in a setting: 1 for 1.0, null, [3,9]."""
    if isinstance(value, list):
        return f"[{','.join(map(_as_setting, value))}]"
    return written(value).removesuffix(".0") if isinstance(value, float) else written(value)


def _save(sweep: Sweep, file: Path) -> None:
    """By the main process."""
    if is_main_process():
        write_text(file, yaml.safe_dump(asdict(sweep), sort_keys=False))
