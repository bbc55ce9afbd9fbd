"""What the commands share: how they speak, and how a folder is spelled."""

import os
import sys

from equimid.errors import UserError

__all__ = ["eprint", "reject_settings", "strip_slash"]


def strip_slash(data: str) -> str:
    """One name for a folder with and without the slash that a shell completes: records go by it."""
    return data.rstrip(os.sep) or data


def reject_settings(settings: list[str]) -> None:
    if settings:
        raise UserError(
            f"{settings[0]!r}: this command takes no settings; pretrain, measure, sweep, demo, recipes and constants do"
        )


def eprint(text: str) -> None:
    sys.stderr.write(text + "\n")
