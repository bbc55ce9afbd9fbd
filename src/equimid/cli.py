"""The command line: equimid pretrain, evaluate, report, demo, recipes."""

import logging
import re
import signal
import sys
from pathlib import Path
from typing import Annotated

import tyro

from equimid.errors import UserError

__all__ = ["main"]

# key=value settings; everything else is tyro's
_SETTING = re.compile(r"^[a-z_]+(\.[a-z_0-9]+)*=")

app = tyro.extras.SubcommandApp()


def main() -> None:
    """Entry point: exit status 0, 2 for a user's mistake (one line, no traceback), 128 + signal when stopped."""
    _set_up_logging()
    arguments = [a for a in sys.argv[1:] if not _is_setting(a)]
    _settings[:] = [a for a in sys.argv[1:] if _is_setting(a)]
    try:
        app.cli(prog="equimid", args=arguments or ["--help"], description=_DESCRIPTION)
    except UserError as error:
        # from a loader worker it comes with the worker's traceback before it
        _say(f"equimid: {str(error).strip().splitlines()[-1].removeprefix('equimid.errors.UserError: ')}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("equimid: stopped; run the same command again to go on")
        sys.exit(130)


_DESCRIPTION = """Pretrain vision transformers that are equivariant in the middle and invariant at the end."""
_settings: list[str] = []


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


def _is_setting(argument: str) -> bool:
    return bool(_SETTING.match(argument)) and not Path(argument).exists()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@app.command
def pretrain(
    data: Annotated[str, tyro.conf.Positional],
    recipe: str = "ser-small",
    out: Path | None = None,
) -> None:
    """Pretrain on DATA, measure, and leave a run's folder with a report and a backbone.

    Settings follow as key=value, such as ser.weight=0.3 train.epochs=50; `equimid recipes NAME` lists them all.
    The same command on the same folder goes on where it stopped.

    Args:
        data: a folder of images, a text file of paths, or a name such as digits or cifar10
        recipe: what to run; see `equimid recipes`
        out: the run's folder; by default runs/RECIPE-DATA
    """
    from equimid.config import override
    from equimid.engine import is_main_process
    from equimid.recipes import recipe as recipe_by_name
    from equimid.run import pretrain

    config = override(recipe_by_name(recipe), [*_settings, f"data.source={data}"])
    folder = out or Path("runs") / f"{recipe}-{Path(data).stem or 'data'}"
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


@app.command
def evaluate(run: Annotated[Path, tyro.conf.Positional], data: str | None = None) -> None:
    """Measure the backbone of RUN: kNN and linear probe where there are labels, equivariance always.

    Args:
        run: a run's folder
        data: labelled images (class folders, or train/ and test/ with class folders); by default the run's own
    """
    from equimid.run import evaluate

    _no_settings()
    _say(f"report: {evaluate(run, data)}")


@app.command
def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path | None = None) -> None:
    """Write one page that shows RUNS side by side.

    Args:
        runs: one or more runs' folders
        out: the page; by default report.html in the run's folder, or in the current one for several runs
    """
    from equimid.report import write_report

    _no_settings()
    if not runs:
        raise UserError("name at least one run's folder")
    page = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    _say(f"report: {write_report(list(runs), page)}")


@app.command
def demo(out: Path = Path("demo")) -> None:
    """Three runs on the digits that scikit-learn bundles, compared on one page; minutes on two cores.

    Args:
        out: where the runs and the page go
    """
    from equimid.demo import run_demo

    page = run_demo(out, _settings)
    _say(f"the page that compares them: {page.resolve()}")


@app.command
def recipes(name: Annotated[str | None, tyro.conf.Positional] = None) -> None:
    """List the recipes, or all settings of one.

    Args:
        name: a recipe
    """
    from equimid.config import flatten
    from equimid.recipes import RECIPES, recipe

    _no_settings()
    if name is None:
        lines = [f"{key:18} {(function.__doc__ or '').strip()}" for key, function in RECIPES.items()]
    else:
        lines = [f"{key}={value}" for key, value in flatten(recipe(name)).items()]
    sys.stdout.write("\n".join(lines) + "\n")


def _no_settings() -> None:
    if _settings:
        raise UserError(f"{_settings[0]!r}: this command takes no settings; they belong to pretrain and demo")


if __name__ == "__main__":
    main()
