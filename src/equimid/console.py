"""What the user sees while something runs: progress bars, on one process of several."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLine", "is_main_process", "progress_bar"]

logger = logging.getLogger("equimid")


def is_main_process() -> bool:
    """Whether this process speaks and writes for all ranks; also right before the ranks are started."""
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not (is_main_process() and console.is_terminal):
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class ProgressLine:
    """A bar with losses, images per second and time left on a terminal; a line now and then anywhere else."""

    SECONDS_BETWEEN_LINES = 20.0

    def __init__(self, total: int, done: int, shown: bool) -> None:
        self.total, self.last_line, self.shown = total, 0.0, shown
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=total, completed=done, numbers="")
        self.done = done

    def __enter__(self) -> "ProgressLine":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, losses: Mapping[str, float], images_per_second: float) -> None:
        """One step further."""
        self.done += 1
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        numbers += f"  {images_per_second:,.0f} images/s"
        self.bar.update(self.task, advance=1, numbers=numbers)
        now = time.monotonic()
        last = self.done == self.total
        if self.shown and self.bar.disable and (last or now - self.last_line > self.SECONDS_BETWEEN_LINES):
            self.last_line = now
            logger.info("step %d of %d  %s", self.done, self.total, numbers)
