"""What the commands share: the parser, messages, and how a folder is written."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from equimid.errors import UserError

__all__ = ["Parser", "eprint", "reject_settings", "strip_slash"]


class Parser(argparse.ArgumentParser):
    """argparse, whose mistakes are UserErrors."""

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UserError: always.
        """
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_whole(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; an option that there is not is named with the nearest one.

        Raises:
            UserError: an unknown option, too few or too many words.
        """
        args, rest = self.parse_known_args(list(words))
        if rest:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(rest[0], known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            kind = "option" if rest[0].startswith("-") else "argument"
            self.error(f"unknown {kind} {rest[0]!r}{hint}")
        return args


def strip_slash(data: str) -> str:
    """One name for a folder with and without the slash that a shell completes: records go by it."""
    return data.rstrip(os.sep) or data


def reject_settings(settings: list[str]) -> None:
    """
    Raises:
        UserError: there are settings.
    """
    if settings:
        raise UserError(
            f"{settings[0]!r}: this command takes no settings; pretrain, evaluate, sweep, demo and recipes show do"
        )


def eprint(text: str) -> None:
    """A line for the user, beside the output."""
    sys.stderr.write(text + "\n")
