"""Commands that train and measure. What they need is imported when they run."""

import argparse
import signal
import sys
from pathlib import Path

from equimid.cli.shared import eprint, reject_settings, strip_slash
from equimid.errors import UserError

__all__ = ["Command", "DemoCommand", "EvaluateCommand", "PretrainCommand", "ReportCommand", "SweepCommand"]


class Command:
    """A command; its docstring is its help."""

    def declare(self, parser: argparse.ArgumentParser) -> None:
        """Its arguments."""

    def epilog(self) -> str | None:
        """What its help ends with."""
        return None

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        """Do it. settings: key=value."""
        raise NotImplementedError


class PretrainCommand(Command):
    """Pretrain on images, measure, and leave a folder with a report and a backbone.

    Settings follow as KEY=VALUE, such as ser.weight=0.3 train.epochs=50. The same command on the same folder resumes
    a run that was stopped.
    """

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("data", metavar="DATA", help="a folder of images, a text file of paths, or a name: digits")
        parser.add_argument("--recipe", metavar="NAME", default="ser-small", help="what to run (default: ser-small)")
        parser.add_argument("--out", metavar="RUN", type=Path, help="the run's folder (default: runs/NAME-DATA)")

    def epilog(self) -> str:
        from equimid.recipes.describe import most_used

        return "\n".join(
            [
                "The ten settings that are changed most, with their values in ser-small:",
                *most_used("ser-small"),
                "",
                "equimid recipes lists the recipes; equimid recipes show NAME lists all settings of one.",
            ]
        )

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        from equimid.data.open import check_exists
        from equimid.recipes import configured

        if any(setting.startswith("data.source=") for setting in settings):
            raise UserError(f"the images are named twice: {args.data} and data.source; leave data.source out")
        data = strip_slash(args.data)
        config = configured(args.recipe, [*settings, f"data.source={data}"])
        check_exists(data)

        from equimid.console import is_main_process
        from equimid.runs.pretrain import pretrain

        folder = args.out or Path("runs") / f"{args.recipe}-{Path(data).stem or 'data'}"
        outcome = pretrain(config, folder)
        if not is_main_process():
            return
        if outcome.stopped_by is not None:
            name = signal.Signals(outcome.stopped_by).name
            eprint(
                f"equimid: {name} after step {outcome.steps} of {outcome.total}; the checkpoint is written. "
                "Run the same command again to resume"
            )
            sys.exit(128 + outcome.stopped_by)
        eprint(f"report:   {folder / 'report.html'}\nbackbone: {folder / 'backbone'}")


class EvaluateCommand(Command):
    """Measure any network: a run's, a backbone's, timm's or Hugging Face's.

    equimid evaluate --model runs/mine                  the routine: kNN and linear probe with labels, equivariance,
                                                        pictures
    equimid evaluate linear geometry --model runs/mine --data labelled
    equimid evaluate equivariance --model timm:vit_small_patch16_224 --data photos
    equimid evaluate runs/mine                          the routine, for short

    Settings of the groups evaluation and runtime follow as KEY=VALUE, such as evaluation.knn_k=10.
    """

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("what", metavar="WHAT", nargs="*", help="measurements; the routine where none is named")
        parser.add_argument(
            "--model",
            metavar="MODEL",
            help="a run's folder, a backbone's folder, timm:NAME, or hf:NAME (or its folder)",
        )
        parser.add_argument("--data", metavar="DATA", help="what it is measured on; by default the run's own images")
        parser.add_argument(
            "--train", metavar="DATA", help="labelled training images that lie elsewhere, for probes and robustness"
        )
        parser.add_argument(
            "--out",
            metavar="FOLDER",
            type=Path,
            help="records and page; by default the run's folder, or measured/MODEL",
        )
        parser.add_argument(
            "--weights", choices=("auto", "pretrained", "random"), default="auto",
            help="of timm: and hf: models; auto takes pretrained ones, and says so where it cannot have them",
        )  # fmt: skip
        parser.add_argument("--random", action="store_true", help="measure a network of random weights beside it")

    def epilog(self) -> str:
        from equimid.evaluation.registry import MEASUREMENTS

        return "\n".join(["What can be measured:", *(f"  {name:16} {m.text}" for name, m in MEASUREMENTS.items())])

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        from equimid.evaluation.registry import MEASUREMENTS, find_measurement

        what, model = list(args.what), args.model
        if model is None and what and what[0] not in MEASUREMENTS:
            model = what.pop(0)
        if model is None:
            if what:
                raise UserError(f"evaluate needs --model: equimid evaluate {' '.join(what)} --model MODEL --data DATA")
            sys.stdout.write(f"equimid evaluate [WHAT ...] --model MODEL --data DATA\n\n{self.epilog()}\n")
            return
        for name in what:
            find_measurement(name)
        if not model.startswith(("timm:", "hf:")) and not Path(model).exists():
            kind = "model" if args.model or what else "measurement and no model"
            raise UserError(
                f"no {kind} {model!r}: expected a run's folder, a backbone's folder, timm:NAME or hf:NAME"
                + ("" if kind == "model" else f", or measurements: {', '.join(MEASUREMENTS)}")
            )

        from equimid.console import is_main_process
        from equimid.runs.evaluate import evaluate

        page = evaluate(
            strip_slash(model),
            args.data and strip_slash(args.data),
            what,
            train=args.train and strip_slash(args.train),
            out=args.out,
            weights=args.weights,
            random=args.random,
            settings=settings,
        )
        if is_main_process():
            eprint(f"records: {page.parent / 'records.jsonl'}\nreport:  {page}")


class SweepCommand(Command):
    """Run a recipe for several seeds and values of settings, and compare them: means, intervals, paired differences.

    Settings for all runs follow as KEY=VALUE. The same command resumes a sweep that was stopped. A file that declares a
    study, such as experiments/e1.yaml, stands in place of RECIPE and of all else but --out.
    """

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("recipe", metavar="RECIPE", help="see equimid recipes; or STUDY.yaml")
        parser.add_argument("--data", metavar="DATA", help="a folder of images, a text file of paths, or a name")
        parser.add_argument("--seeds", metavar="N", type=int, nargs="+", help="of weights, order, views and probes")
        parser.add_argument(
            "--vary", metavar="KEY=VALUE,VALUE", action="append", default=[],
            help="a setting with its values; given several times, every combination is run",
        )  # fmt: skip
        parser.add_argument(
            "--out", metavar="FOLDER", type=Path, help="where the runs and the page go (default: sweeps/RECIPE-DATA)"
        )

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        if args.recipe.endswith((".yaml", ".yml")):
            self._run_study(args, settings)
            return
        from equimid.console import is_main_process
        from equimid.runs.sweep import run_sweep

        data = strip_slash(args.data or "digits")
        out = args.out or Path("sweeps") / f"{args.recipe}-{Path(data).stem or 'data'}"
        page, failures = run_sweep(args.recipe, data, args.seeds or (0, 1, 2), args.vary, out, settings)
        if is_main_process():
            eprint(f"the page that compares them: {page.resolve()}")
            for failure in failures:
                eprint(f"equimid: {failure}")
        if failures:
            sys.exit(2)

    def _run_study(self, args: argparse.Namespace, settings: list[str]) -> None:
        reject_settings(settings)
        if args.vary or args.seeds or args.data:
            raise UserError(f"{args.recipe} declares data, seeds and arms; leave --data, --seeds and --vary out")
        from equimid.console import is_main_process
        from equimid.runs.experiment import run_experiment

        written = run_experiment(Path(args.recipe), args.out or Path("sweeps") / Path(args.recipe).stem)
        if is_main_process():
            eprint(f"{len(written)} cell(s) finished, in {Path(args.recipe).with_suffix('')}")


class ReportCommand(Command):
    """Write one page that shows runs side by side."""

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="runs' folders")
        parser.add_argument(
            "--out", metavar="PAGE", type=Path,
            help="the page; by default report.html in the run's folder, or in the current one for several runs",
        )  # fmt: skip

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        from equimid.report import write_report

        reject_settings(settings)
        page = args.out or (args.runs[0] / "report.html" if len(args.runs) == 1 else Path("report.html"))
        eprint(f"report: {write_report(args.runs, page)}")


class DemoCommand(Command):
    """Three runs on the digits that scikit-learn bundles, compared on one page; minutes on two cores."""

    def declare(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("demo"), help="default: demo")

    def run(self, args: argparse.Namespace, settings: list[str]) -> None:
        from equimid.console import is_main_process
        from equimid.runs.demo import run_demo

        page = run_demo(args.out, settings)
        if is_main_process():
            eprint(f"the page that compares them: {page.resolve()}")
