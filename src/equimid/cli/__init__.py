"""The command line: equimid pretrain, evaluate, sweep, report, recipes, pack, demo."""

from equimid.cli.entry import main

__all__ = ["main"]
