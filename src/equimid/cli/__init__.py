"""The command line: equimid pretrain, evaluate, measure, sweep, report, demo, pack, recipes, constants."""

from equimid.cli.entry import main

__all__ = ["main"]
