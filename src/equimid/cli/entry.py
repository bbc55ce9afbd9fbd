"""From the words of a command line to a command, and from a mistake to one line."""

import contextlib
import errno
import io
import logging
import os
import re
import sys

import tyro

from equimid.cli.runs import Demo, Evaluate, Measure, Pretrain, Report, Sweep
from equimid.cli.shared import eprint
from equimid.cli.tools import Constants, Pack, Recipes
from equimid.errors import UserError

__all__ = ["main"]

# key=value settings; everything else is tyro's
_SETTING = re.compile(r"^[a-z_][a-z_0-9]*(\.[a-z_0-9]+)*=")

Command = Pretrain | Evaluate | Measure | Sweep | Report | Demo | Pack | Recipes | Constants


def main() -> None:
    """Entry point: exit status 0, 2 for a user's mistake (one line, no traceback), 128 + signal when stopped."""
    _set_up_logging()
    arguments, settings = _sorted(sys.argv[1:])
    try:
        _parse(arguments or ["--help"]).run(settings)
    except UserError as error:
        # from a loader worker it comes with the worker's traceback before it
        eprint("equimid: " + " ".join(str(error).split("equimid.errors.UserError: ")[-1].split()))
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            raise
        eprint(f"equimid: {error.filename or 'writing'}: {error.strerror}; mend that and run the same command again")
        sys.exit(2)
    except KeyboardInterrupt:
        eprint("equimid: stopped; run the same command again to go on")
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
                config=(tyro.conf.CascadeSubcommandArgs,),
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
