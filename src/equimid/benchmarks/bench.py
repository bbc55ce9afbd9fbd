"""Which benchmark, and where its figures go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from equimid.benchmarks.options import EvaluateOptions, LoaderOptions, LossOptions, Options, StepOptions

if TYPE_CHECKING:
    from equimid.benchmarks.measuring import Result

__all__ = ["bench", "results_folder"]


def bench(options: Options) -> Result:
    """Run the benchmark that the options are of.

    Raises:
        UserError: a device that is not there, or data that cannot be used.
    """
    # each here: the command line makes its help from the options alone, without torch
    if isinstance(options, StepOptions):
        from equimid.benchmarks.step import bench_step

        return bench_step(options)
    if isinstance(options, LossOptions):
        from equimid.benchmarks.loss import bench_loss

        return bench_loss(options)
    if isinstance(options, LoaderOptions):
        from equimid.benchmarks.loader import bench_loader

        return bench_loader(options)
    assert isinstance(options, EvaluateOptions)
    from equimid.benchmarks.evaluate import bench_evaluate

    return bench_evaluate(options)


def results_folder(result: Result) -> Path | None:
    """Where a GPU's figures go by themselves: benchmarks/results/DATE-GPU below the working directory."""
    gpu = result.machine.get("gpu")
    if gpu is None:
        return None
    return Path("benchmarks") / "results" / f"{result.machine['date']}-{re.sub(r'[^a-z0-9]+', '-', gpu.lower())}"
