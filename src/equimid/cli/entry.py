"""From the words of a command line to a command, and from a mistake to one line."""

import argparse
import errno
import inspect
import logging
import re
import sys
from importlib.metadata import version

from equimid.cli.runs import DemoCommand, EvaluateCommand, PretrainCommand, ReportCommand, SweepCommand
from equimid.cli.shared import Parser, eprint
from equimid.cli.tools import PackCommand, RecipesCommand
from equimid.errors import UserError

__all__ = ["main"]

# A word like this is a setting, whatever lies in the current folder; a folder of such a name is written ./KEY=VALUE.
_SETTING = re.compile(r"^[a-z_][a-z_0-9]*(\.[a-z_0-9]+)*=")

_COMMANDS = {
    "pretrain": PretrainCommand(),
    "evaluate": EvaluateCommand(),
    "sweep": SweepCommand(),
    "report": ReportCommand(),
    "recipes": RecipesCommand(),
    "pack": PackCommand(),
    "demo": DemoCommand(),
}
_RENAMED = {
    "measure": "equimid measure is called equimid evaluate now",
    "bench": "the benchmarks lie in the repository: python benchmarks/bench.py",
    "constants": "EquiMod measures its constants itself now; leave equimod.constants out",
}


def main() -> None:
    """Entry point: exit status 0, 2 for a user's mistake (one line, no traceback), 128 + signal when stopped."""
    _set_up_logging()
    try:
        _run(sys.argv[1:])
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
        eprint("equimid: stopped; run the same command again to resume")
        sys.exit(130)


def _run(words: list[str]) -> None:
    if words and words[0] in _RENAMED:
        raise UserError(_RENAMED[words[0]])
    parser, parsers = _parsers()
    if not words:
        parser.print_help()
    elif words[0] not in _COMMANDS:
        parser.parse_whole(words)  # --help, --version, or a mistake
    else:
        command = _COMMANDS[words[0]]
        arguments, settings = _split(words[1:])
        if {"-h", "--help"} & set(arguments):
            parsers[words[0]].epilog = command.epilog()
        command.run(parsers[words[0]].parse_whole(arguments), settings)


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    """Of the program, and of each command."""
    parser = Parser(
        prog="equimid",
        description="Pretrain vision transformers that are equivariant in the middle and invariant at the end.",
        epilog="equimid COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"equimid {version('equimid')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", parser_class=Parser)
    parsers = {}
    for name, command in _COMMANDS.items():
        text = inspect.cleandoc(command.__doc__ or "")
        parsers[name] = commands.add_parser(
            name, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.declare(parsers[name])
    return parser, parsers


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Arguments and settings; the word after --vary looks like a setting and is none."""
    arguments: list[str] = []
    settings: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        (settings if _SETTING.match(word) and before != "--vary" else arguments).append(word)
    return arguments, settings


def _set_up_logging() -> None:
    """Above a progress bar on a terminal, unwrapped lines anywhere else."""
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        console = Console(stderr=True)
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%X")
    logger = logging.getLogger("equimid")
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [handler]
