"""The demo: MoCo-v3 alone, with late CLS and posed views, and with SER, on the bundled digits; one page."""

from collections.abc import Sequence
from pathlib import Path

from equimid.console import is_main_process
from equimid.recipes import configured
from equimid.report import write_report
from equimid.runs.pretrain import on_one_device, pretrain

__all__ = ["run_demo"]

_RECIPES = ("mocov3-tiny", "control-tiny", "ser-tiny")


def run_demo(out: Path, settings: Sequence[str] = ()) -> Path:
    """Run the three recipes into folders under `out` (finished ones are not run again); returns the page's path.

    Raises:
        UserError: see `pretrain`; or a run was stopped.
    """
    folders = []
    for name in _RECIPES:
        folder = out / name
        outcome = pretrain(on_one_device(configured(name, settings)), folder)
        if outcome.stopped_by is not None:
            raise KeyboardInterrupt
        folders.append(folder)
    page = out / "report.html"
    return write_report(folders, page) if is_main_process() else page
