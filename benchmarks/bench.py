"""What equimid costs on this machine, each figure beside another one of the same run.

python benchmarks/bench.py step|loss|loader|evaluate [--out FOLDER] [options]
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from lib.options import EvaluateOptions, LoaderOptions, LossOptions, Options, StepOptions
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from equimid.errors import UserError

if TYPE_CHECKING:
    from lib.timing import Result


@dataclass
class Bench:
    """Time a training step, the patch loss, the loader or an evaluation on this machine, against a plain way."""

    what: OmitArgPrefixes[
        OmitSubcommandPrefixes[
            Annotated[StepOptions, subcommand("step")]
            | Annotated[LossOptions, subcommand("loss")]
            | Annotated[LoaderOptions, subcommand("loader")]
            | Annotated[EvaluateOptions, subcommand("evaluate")]
        ]
    ]
    out: Path | None = None
    """also write NAME.json and NAME.txt there; on a GPU by default benchmarks/results/DATE-GPU"""


def bench(options: Options) -> Result:
    """Run the benchmark that the options are of.

    Raises:
        UserError: a device that is not there, or data that cannot be used.
    """
    # each here: the command line makes its help from the options alone, without torch
    if isinstance(options, StepOptions):
        from bench_step import bench_step

        return bench_step(options)
    if isinstance(options, LossOptions):
        from bench_loss import bench_loss

        return bench_loss(options)
    if isinstance(options, LoaderOptions):
        from bench_loader import bench_loader

        return bench_loader(options)
    assert isinstance(options, EvaluateOptions)
    from bench_evaluate import bench_evaluate

    return bench_evaluate(options)


def results_folder(result: Result) -> Path | None:
    """Where a GPU's figures go by themselves: benchmarks/results/DATE-GPU below the working directory."""
    gpu = result.machine.get("gpu")
    if gpu is None:
        return None
    return Path("benchmarks") / "results" / f"{result.machine['date']}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower())}"


def main() -> None:
    """Exit status 2 and one line for a user's mistake."""
    chosen = tyro.cli(Bench, config=(tyro.conf.CascadeSubcommandArgs,))
    if chosen.out is not None and chosen.out.exists() and not chosen.out.is_dir():
        sys.exit(f"{chosen.out} is a file; --out must name a folder")
    try:
        result = bench(chosen.what)
    except UserError as error:
        sys.stderr.write(f"bench: {error}\n")
        sys.exit(2)
    sys.stdout.write(result.table())
    folder = chosen.out or results_folder(result)
    if folder is not None:
        sys.stderr.write(f"written: {result.save(folder)}\n")


if __name__ == "__main__":
    main()
