"""The command line: equimid pretrain, evaluate, measure, sweep, report, demo, recipes, constants."""

import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, UseAppendAction, arg

from equimid.errors import UserError

__all__ = ["main"]

# key=value settings; everything else is tyro's
_SETTING = re.compile(r"^[a-z_][a-z_0-9]*(\.[a-z_0-9]+)*=")


@dataclass
class Pretrain:
    """Pretrain on DATA, measure, and leave a run's folder with a report and a backbone.

    Settings follow as key=value, such as ser.weight=0.3 train.epochs=50; `equimid recipes show NAME` lists them all.
    The same command on the same folder goes on where it stopped.
    """

    data: Annotated[Positional[str], arg(metavar="DATA")]
    """a folder of images, a text file of paths, or a name such as digits or cifar10"""
    recipe: Annotated[str, arg(metavar="NAME")] = "ser-small"
    """what to run; see `equimid recipes`"""
    out: Annotated[Path | None, arg(metavar="RUN")] = None
    """the run's folder; by default runs/NAME-DATA"""

    def run(self, settings: list[str]) -> None:
        from equimid.engine import is_main_process
        from equimid.recipes import configured
        from equimid.run import pretrain

        if any(setting.startswith("data.source=") for setting in settings):
            raise UserError(f"the images are named twice: {self.data} and data.source; leave data.source out")
        config = configured(self.recipe, [*settings, f"data.source={_spelled(self.data)}"])
        folder = self.out or Path("runs") / f"{self.recipe}-{Path(self.data).stem or 'data'}"
        outcome = pretrain(config, folder)
        if not is_main_process():
            return
        if outcome.stopped_by is not None:
            name = signal.Signals(outcome.stopped_by).name
            _say(
                f"equimid: {name} after step {outcome.steps} of {outcome.total}; the checkpoint is written. "
                "Run the same command again to go on"
            )
            sys.exit(128 + outcome.stopped_by)
        _say(f"report:   {folder / 'report.html'}\nbackbone: {folder / 'backbone'}")


@dataclass
class Evaluate:
    """Measure the backbone of RUN: kNN and linear probe where there are labels, equivariance always."""

    run_: Annotated[Positional[Path], arg(metavar="RUN", name="run")]
    """a run's folder"""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """labelled images (class folders, or train/ and test/ with class folders); by default the run's own"""

    def run(self, settings: list[str]) -> None:
        from equimid.run import evaluate

        _refuse(settings)
        _say(f"report: {evaluate(self.run_, self.data and _spelled(self.data))}")


@dataclass
class Measure:
    """Measure WHAT of any network; `equimid measure` alone lists what there is.

    Settings of the groups evaluation and runtime follow as key=value, such as evaluation.knn_k=10.
    """

    what: Annotated[Positional[tuple[str, ...]], arg(metavar="WHAT")] = ()
    """one or more measurements"""
    model: Annotated[str | None, arg(metavar="MODEL")] = None
    """a run's folder, a backbone's folder, timm:NAME, or hf:NAME (also a folder of Hugging Face's)"""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """what it is measured on"""
    train: Annotated[str | None, arg(metavar="DATA")] = None
    """labelled training images that lie elsewhere, for probes and robustness"""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """records and page; by default the run's folder, or measured/MODEL"""
    weights: Literal["auto", "pretrained", "random"] = "auto"
    """of timm: and hf: models; auto takes pretrained ones, and says so where it cannot have them"""
    random: bool = False
    """measure a network of random weights beside it"""

    def run(self, settings: list[str]) -> None:
        if not self.what:
            from equimid.evaluation import MEASUREMENTS

            lines = [f"  {name:16} {measurement.text}" for name, measurement in MEASUREMENTS.items()]
            sys.stdout.write("\n".join(["equimid measure WHAT --model MODEL --data DATA", *lines]) + "\n")
            return
        if self.model is None or self.data is None:
            missing = "--model" if self.model is None else "--data"
            raise UserError(f"measure needs {missing}: equimid measure {' '.join(self.what)} --model MODEL --data DATA")
        from equimid.engine import is_main_process
        from equimid.measure import measure

        page = measure(
            self.what,
            self.model.rstrip(os.sep),
            _spelled(self.data),
            train=self.train and _spelled(self.train),
            out=self.out,
            weights=self.weights,
            random=self.random,
            settings=settings,
        )
        if is_main_process():
            _say(f"records: {page.parent / 'records.jsonl'}\nreport:  {page}")


@dataclass
class Sweep:
    """Run RECIPE for several seeds and values of settings, and compare them: means, intervals, paired differences.

    Settings for all runs follow as key=value. The same command goes on where it stopped.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """see `equimid recipes`"""
    data: Annotated[str, arg(metavar="DATA")] = "digits"
    """a folder of images, a text file of paths, or a name"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of weights, order, views and probes"""
    vary: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE,VALUE")]] = ()
    """a setting with its values; given several times, every combination is run"""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """where the runs and the page go; by default sweeps/RECIPE-DATA"""

    def run(self, settings: list[str]) -> None:
        from equimid.engine import is_main_process
        from equimid.sweep import run_sweep

        out = self.out or Path("sweeps") / f"{self.recipe}-{Path(self.data).stem or 'data'}"
        page, failures = run_sweep(self.recipe, _spelled(self.data), self.seeds, self.vary, out, settings)
        if is_main_process():
            _say(f"the page that compares them: {page.resolve()}")
            for failure in failures:
                _say(f"equimid: {failure}")
        if failures:
            sys.exit(2)


@dataclass
class Report:
    """Write one page that shows RUNS side by side."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """one or more runs' folders"""
    out: Annotated[Path | None, arg(metavar="PAGE")] = None
    """the page; by default report.html in the run's folder, or in the current one for several runs"""

    def run(self, settings: list[str]) -> None:
        from equimid.report import write_report

        _refuse(settings)
        if not self.runs:
            raise UserError("report needs at least one run's folder: equimid report RUN")
        page = self.out or (self.runs[0] / "report.html" if len(self.runs) == 1 else Path("report.html"))
        _say(f"report: {write_report(list(self.runs), page)}")


@dataclass
class Demo:
    """Three runs on the digits that scikit-learn bundles, compared on one page; minutes on two cores."""

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("demo")
    """where the runs and the page go"""

    def run(self, settings: list[str]) -> None:
        from equimid.demo import run_demo
        from equimid.engine import is_main_process

        page = run_demo(self.out, settings)
        if is_main_process():
            _say(f"the page that compares them: {page.resolve()}")


@dataclass
class Recipes:
    """List the recipes; or `recipes show NAME [settings]`: all settings of one, and what it changes in its parent."""

    words: Annotated[Positional[tuple[str, ...]], arg(metavar="[show NAME]")] = ()
    """nothing, or show and a recipe"""

    def run(self, settings: list[str]) -> None:
        name = self.words[-1] if self.words else None
        if len(self.words) > 2 or (len(self.words) == 2 and self.words[0] != "show") or name == "show":
            raise UserError(f"recipes {' '.join(self.words)}: write equimid recipes, or equimid recipes show NAME")
        if name is None:
            _refuse(settings)
            lines = _listed()
        else:
            lines = _shown(name, settings)
        sys.stdout.write("\n".join(lines) + "\n")


def _listed() -> list[str]:
    from equimid.recipes import ADDITIONS, BASES, ROWS, SIZES

    lines = ["A recipe is ROW-SIZE, such as ser-small. Sizes:"]
    lines += [f"  {size:18} {edit.__doc__}" for size, edit in SIZES.items()]
    lines += ["", "Rows, with the linear top-1 (%) on ImageNet-1k that the paper gives; none of them was run here:"]
    lines += [f"  {name:18} {row.published or '-':>6}  {row.text}" for name, row in ROWS.items()]
    return [
        *lines,
        "",
        "Any base with any add-on is BASE+ADDON-SIZE, or at another layer BASE+ADDON@LAYER-SIZE, as dino+essl@3-tiny:",
        f"  bases    {', '.join(BASES)}",
        f"  add-ons  {', '.join(ADDITIONS)}",
    ]


def _shown(name: str, settings: list[str]) -> list[str]:
    from equimid.config import differences, flatten
    from equimid.recipes import configured, parent, recipe

    config = configured(name, settings)
    lines = [f"{key}={_written(value)}" for key, value in flatten(config).items()]
    above = parent(name)
    if above is None:
        return lines
    changed = differences(recipe(above), config)
    changed.pop("recipe", None)
    told = [f"# {key}: {_written(old)} -> {_written(new)}" for key, (old, new) in changed.items()]
    return [*lines, "", f"# against {above}:", *(told or ["# no difference"])]


def _written(value: object) -> object:
    return "null" if value is None else value


@dataclass
class Constants:
    """Measure what the views of a recipe draw (mean and deviation): EquiMod standardises its parameters by that.

    Views that no constants are stored for are refused with this command; settings follow as key=value.
    """

    out: Annotated[Path, arg(metavar="FILE")]
    """where they are stored, beside those of other views; a run reads it by equimod.constants=FILE"""
    recipe: Annotated[str, arg(metavar="NAME")] = "equimod-small"
    """whose views"""
    draws: int = 100_000
    """of each view"""

    def run(self, settings: list[str]) -> None:
        from equimid.addons import check_constants_file, measure_constants, store_constants
        from equimid.config import override
        from equimid.recipes import recipe

        check_constants_file(self.out)
        # the views alone: the add-on itself would ask for the constants that are not there yet
        without = replace(recipe(self.recipe), addons={})
        plan = override(without, [s for s in settings if not s.startswith("equimod.")]).plan()
        command = " ".join(["equimid constants --recipe", self.recipe, *settings, "--out", str(self.out)])
        store_constants(measure_constants(plan, self.draws, command), self.out)
        _say(f"constants of {self.draws:,} draws a view: {self.out}")


Command = Pretrain | Evaluate | Measure | Sweep | Report | Demo | Recipes | Constants


def main() -> None:
    """Entry point: exit status 0, 2 for a user's mistake (one line, no traceback), 128 + signal when stopped."""
    _set_up_logging()
    arguments, settings = _sorted(sys.argv[1:])
    try:
        _parse(arguments or ["--help"]).run(settings)
    except UserError as error:
        # from a loader worker it comes with the worker's traceback before it
        _say("equimid: " + " ".join(str(error).split("equimid.errors.UserError: ")[-1].split()))
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        _say(f"equimid: {error.filename or 'writing'}: {error.strerror}; mend that and run the same command again")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("equimid: stopped; run the same command again to go on")
        sys.exit(130)


def _parse(arguments: list[str]) -> Command:
    """The command; a mistake becomes one line instead of tyro's box."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            command: Command = tyro.cli(
                Command,
                prog="equimid",
                args=arguments,
                description="Pretrain vision transformers that are equivariant in the middle and invariant at the end.",
            )
            return command
    except SystemExit as exit_:
        if exit_.code in (0, None):
            raise
        told = [line.strip("╭╮╰╯│─ ") for line in box.getvalue().splitlines()[1:]]
        text = " ".join(line for line in told if line).split("For full helptext")[0].strip()
        raise UserError(f"{text}; see equimid --help") from None


def _set_up_logging() -> None:
    """Above a progress bar on a terminal, unwrapped lines anywhere else."""
    from rich.console import Console
    from rich.logging import RichHandler

    console = Console(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logger = logging.getLogger("equimid")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]


def _sorted(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments and settings; the word after --vary looks like a setting and is none."""
    arguments: list[str] = []
    settings: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        (settings if _is_setting(word) and before != "--vary" else arguments).append(word)
    return arguments, settings


def _is_setting(argument: str) -> bool:
    return bool(_SETTING.match(argument)) and not os.path.exists(argument)


def _spelled(data: str) -> str:
    """One name for a folder with and without the slash that a shell completes: records go by it."""
    return data.rstrip(os.sep) or data


def _refuse(settings: list[str]) -> None:
    if settings:
        raise UserError(
            f"{settings[0]!r}: this command takes no settings; pretrain, measure, sweep, demo, recipes and constants do"
        )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    main()
