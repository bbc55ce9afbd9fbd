"""Where the numbers of a step go: metrics.csv, TensorBoard where it is installed, the progress bar."""

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from equimid.files import atomic_write

__all__ = ["Metrics"]

logger = logging.getLogger("equimid")

Row = Mapping[str, float | int]


class Metrics:
    """metrics.csv, and TensorBoard files under `tensorboard/`. A resumed run drops the rows after its checkpoint.

    seconds: that the rows before took
    """

    def __init__(self, folder: Path, resumed_step: int, tensorboard: bool) -> None:
        self.file = folder / "metrics.csv"
        self.columns: list[str] = []
        self.seconds = 0.0
        if self.file.exists():
            self._truncate(resumed_step)
        self.board: Any = _tensorboard(folder / "tensorboard", resumed_step) if tensorboard else None

    def write(self, row: Row) -> None:
        """Append a row; the first one fixes the columns."""
        with self.file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if not self.columns:
                self.columns = list(row)
                writer.writerow(self.columns)
            writer.writerow([f"{row[c]:.8g}" if isinstance(row[c], float) else row[c] for c in self.columns])
        if self.board is not None:
            for name, value in row.items():
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush TensorBoard."""
        if self.board is not None:
            self.board.close()

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


def _tensorboard(folder: Path, resumed_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=resumed_step + 1)
