"""Commands that train and measure: pretrain, evaluate, measure, sweep, report, demo."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from equimid.cli.shared import eprint, reject_settings, strip_slash
from equimid.errors import UserError

__all__ = ["Demo", "Evaluate", "Measure", "Pretrain", "Report", "Sweep"]


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
        from equimid.console import is_main_process
        from equimid.recipes import configured
        from equimid.runs.pretrain import pretrain

        if any(setting.startswith("data.source=") for setting in settings):
            raise UserError(f"the images are named twice: {self.data} and data.source; leave data.source out")
        config = configured(self.recipe, [*settings, f"data.source={strip_slash(self.data)}"])
        folder = self.out or Path("runs") / f"{self.recipe}-{Path(self.data).stem or 'data'}"
        outcome = pretrain(config, folder)
        if not is_main_process():
            return
        if outcome.stopped_by is not None:
            name = signal.Signals(outcome.stopped_by).name
            eprint(
                f"equimid: {name} after step {outcome.steps} of {outcome.total}; the checkpoint is written. "
                "Run the same command again to go on"
            )
            sys.exit(128 + outcome.stopped_by)
        eprint(f"report:   {folder / 'report.html'}\nbackbone: {folder / 'backbone'}")


@dataclass
class Evaluate:
    """Measure the backbone of RUN: kNN and linear probe where there are labels, equivariance always."""

    run_: Annotated[Positional[Path], arg(metavar="RUN", name="run")]
    """a run's folder"""
    data: Annotated[str | None, arg(metavar="DATA")] = None
    """labelled images (class folders, or train/ and test/ with class folders); by default the run's own"""

    def run(self, settings: list[str]) -> None:
        from equimid.runs.pretrain import evaluate

        reject_settings(settings)
        eprint(f"report: {evaluate(self.run_, self.data and strip_slash(self.data))}")


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
        from equimid.console import is_main_process
        from equimid.runs.measure import measure

        page = measure(
            self.what,
            self.model.rstrip(os.sep),
            strip_slash(self.data),
            train=self.train and strip_slash(self.train),
            out=self.out,
            weights=self.weights,
            random=self.random,
            settings=settings,
        )
        if is_main_process():
            eprint(f"records: {page.parent / 'records.jsonl'}\nreport:  {page}")


@dataclass
class Sweep:
    """Run RECIPE for several seeds and values of settings, and compare them: means, intervals, paired differences.

    Settings for all runs follow as key=value. The same command goes on where it stopped. A file of a declared study,
    such as experiments/e1.yaml, stands in place of RECIPE and of all else but --out.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    """see `equimid recipes`; or STUDY.yaml"""
    data: Annotated[str, arg(metavar="DATA")] = "digits"
    """a folder of images, a text file of paths, or a name"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of weights, order, views and probes"""
    vary: UseAppendAction[Annotated[tuple[str, ...], arg(metavar="KEY=VALUE,VALUE")]] = ()
    """a setting with its values; given several times, every combination is run"""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """where the runs and the page go; by default sweeps/RECIPE-DATA"""

    def run(self, settings: list[str]) -> None:
        from equimid.console import is_main_process
        from equimid.runs.sweep import run_sweep

        if self.recipe.endswith((".yaml", ".yml")):
            self._run_study(settings)
            return
        out = self.out or Path("sweeps") / f"{self.recipe}-{Path(self.data).stem or 'data'}"
        page, failures = run_sweep(self.recipe, strip_slash(self.data), self.seeds, self.vary, out, settings)
        if is_main_process():
            eprint(f"the page that compares them: {page.resolve()}")
            for failure in failures:
                eprint(f"equimid: {failure}")
        if failures:
            sys.exit(2)

    def _run_study(self, settings: list[str]) -> None:
        from equimid.console import is_main_process
        from equimid.runs.experiment import run_experiment

        reject_settings(settings)
        if self.vary or self.seeds != Sweep.seeds or self.data != Sweep.data:
            raise UserError(f"{self.recipe} declares data, seeds and arms; leave --data, --seeds and --vary out")
        written = run_experiment(Path(self.recipe), self.out or Path("sweeps") / Path(self.recipe).stem)
        if is_main_process():
            eprint(f"{len(written)} cell(s) finished, in {Path(self.recipe).with_suffix('')}")


@dataclass
class Report:
    """Write one page that shows RUNS side by side."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN")]
    """one or more runs' folders"""
    out: Annotated[Path | None, arg(metavar="PAGE")] = None
    """the page; by default report.html in the run's folder, or in the current one for several runs"""

    def run(self, settings: list[str]) -> None:
        from equimid.report import write_report

        reject_settings(settings)
        if not self.runs:
            raise UserError("report needs at least one run's folder: equimid report RUN")
        page = self.out or (self.runs[0] / "report.html" if len(self.runs) == 1 else Path("report.html"))
        eprint(f"report: {write_report(list(self.runs), page)}")


@dataclass
class Demo:
    """Three runs on the digits that scikit-learn bundles, compared on one page; minutes on two cores."""

    out: Annotated[Path, arg(metavar="FOLDER")] = Path("demo")
    """where the runs and the page go"""

    def run(self, settings: list[str]) -> None:
        from equimid.console import is_main_process
        from equimid.runs.demo import run_demo

        page = run_demo(self.out, settings)
        if is_main_process():
            eprint(f"the page that compares them: {page.resolve()}")
