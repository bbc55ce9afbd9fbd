"""Callbacks, which watch a run: the interface, metrics.csv, TensorBoard and the progress line.

    class Printer(Callback):
        def on_log(self, step, row, images):
            print(step, row["loss/total"])

    equimid.pretrain("photos", "runs/mine", callbacks=[Printer()])

Callbacks are called on the main process, with numbers that have been read already: they delay the host, not the device.
What one raises ends the run. Health checks are a callback too (`equimid.engine.health`).
"""

import csv
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from equimid.files import atomic_write

__all__ = ["Callback", "CsvLog", "Outcome", "ProgressLine", "TensorBoardLog"]

logger = logging.getLogger("equimid")

Row = Mapping[str, float | int]


@dataclass(frozen=True)
class Outcome:
    """How training ended.

    Attributes:
        steps: done, over all calls.
        total: of the whole run.
        stopped_by: number of the signal that stopped it; None = none did.
    """

    steps: int
    total: int
    stopped_by: int | None


class Callback:
    """Override what you need."""

    def on_start(self, step: int, total: int) -> None:
        """Called before the first step of this process. step: steps that are done already; total: of the whole run."""

    def on_step(self, step: int, losses: Mapping[str, float], images_per_second: float) -> None:
        """Called after every step. step: from 1; losses: by name ("mocov3", "ser", "total"), means over all
        processes."""

    def on_log(self, step: int, row: Row, images: int) -> None:
        """Called after a step whose numbers are logged (`runtime.log_every`).

        Args:
            step: from 1.
            row: what metrics.csv gets, such as "loss/total", "lr", "feature/std".
            images: how many embeddings the numbers of features are computed from.
        """

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Called after a checkpoint was written. folder: of the run."""

    def on_end(self, outcome: Outcome | None) -> None:
        """Called at the end of training, also after an error (None)."""


class CsvLog(Callback):
    """Writes metrics.csv. A resumed run drops the rows after its checkpoint.

    Attributes:
        seconds: training time up to the last row that was there already.
    """

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.file = folder / "metrics.csv"
        self.columns: list[str] = []
        self.seconds = 0.0
        if self.file.exists():
            self._truncate(resumed_step)

    def on_log(self, step: int, row: Row, images: int) -> None:
        """Append a row; the first one fixes the columns."""
        with self.file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if not self.columns:
                self.columns = list(row)
                writer.writerow(self.columns)
            writer.writerow([f"{row[c]:.8g}" if isinstance(row[c], float) else row[c] for c in self.columns])

    def _truncate(self, step: int) -> None:
        with self.file.open(newline="") as stream:
            rows = [row for row in csv.reader(stream) if row]
        if not rows:
            return
        self.columns, body = rows[0], rows[1:]
        whole = [row for row in body if len(row) == len(self.columns) and row[0].isdigit() and int(row[0]) <= step]
        if whole and "seconds" in self.columns:
            self.seconds = float(whole[-1][self.columns.index("seconds")])
        with atomic_write(self.file) as beside, beside.open("w", newline="") as stream:
            csv.writer(stream).writerows([self.columns, *whole])


class TensorBoardLog(Callback):
    """Writes TensorBoard files under `tensorboard/`, where TensorBoard is installed."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        self.writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def on_log(self, step: int, row: Row, images: int) -> None:
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)

    def on_end(self, outcome: Outcome | None) -> None:
        if self.writer is not None:
            self.writer.close()


class ProgressLine(Callback):
    """Shows losses, images per second and time left: as a bar on a terminal, elsewhere as a line every 20 seconds."""

    SECONDS_BETWEEN_LINES = 20.0

    def on_start(self, step: int, total: int) -> None:
        self.total, self.last_line = total, 0.0
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=total, completed=step, numbers="")
        self.bar.start()

    def on_step(self, step: int, losses: Mapping[str, float], images_per_second: float) -> None:
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in losses.items() if name != "total")
        numbers += f"  {images_per_second:,.0f} images/s"
        self.bar.update(self.task, advance=1, numbers=numbers)
        now = time.monotonic()
        if self.bar.disable and (step == self.total or now - self.last_line > self.SECONDS_BETWEEN_LINES):
            self.last_line = now
            logger.info("step %d of %d  %s", step, self.total, numbers)

    def on_end(self, outcome: Outcome | None) -> None:
        self.bar.stop()
