"""Timings that can be compared: both sides in one process, turn by turn, medians over rounds; and the machine."""

import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from equimid.engine.machine import cores, give_back_freed_memory
from equimid.errors import UserError

__all__ = [
    "Result",
    "Row",
    "Timing",
    "choose_device",
    "describe_machine",
    "growth",
    "paired",
    "ratio",
    "refuse_below",
]

Row = dict[str, float | int | str | None]


@dataclass(frozen=True)
class Timing:
    """Seconds of every round of one side."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Result:
    """What a benchmark found.

    command: that makes it again;  settings: what it was asked
    rows:    a table: all rows have the same keys
    ratios:  {what was divided by what: value}, each measured side by side
    notes:   what was not run, and what a reader must know
    """

    name: str
    command: str
    settings: dict[str, Any]
    rows: list[Row]
    ratios: dict[str, float]
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=dict)

    def table(self) -> str:
        """Text for a terminal and for Markdown."""
        lines = [f"{self.name}: {self.command}", ", ".join(f"{k} {v}" for k, v in self.machine.items()), ""]
        if self.rows:
            columns = list(self.rows[0])
            cells = [columns, *([_written(row.get(column)) for column in columns] for row in self.rows)]
            widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
            written = [
                "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells
            ]
            lines += [written[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *written[1:], ""]
        lines += [f"{what}: {value:.4g}" for what, value in self.ratios.items()]
        return "\n".join([*lines, *self.notes]) + "\n"

    def save(self, folder: Path) -> Path:
        """Write NAME.json and NAME.txt into a folder; returns the former."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.name}.json"
        file.write_text(json.dumps(asdict(self), indent=1) + "\n")
        file.with_suffix(".txt").write_text(self.table())
        return file


def _written(value: float | int | str | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where it is, else the CPU.

    Raises:
        UserError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no CUDA device; use cpu")
    return torch.device(name)


def refuse_below(least: Mapping[str, int], given: Mapping[str, int]) -> None:
    """
    Raises:
        UserError: one of the named options is below its least value.
    """
    for name, value in least.items():
        if given[name] < value:
            raise UserError(f"{name} is {given[name]}; it must be {value} or more")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor or GPU, cores, threads, memory, versions and the date."""
    where: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat()}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        where |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30)}
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    where |= {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
    }
    return where | {package: version(package) for package in ("torch", "torchvision", "timm")}


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def paired(
    sides: Mapping[str, Callable[[], object]], repeats: int, device: torch.device, warmup: int = 1
) -> dict[str, Timing]:
    """Run every side `repeats` times in turn, the order turned round every other round, after `warmup` calls each.

    What disturbs the machine then disturbs all sides alike; compare them by `ratio`.
    """
    refuse_below({"repeats": 1}, {"repeats": repeats})
    for _ in range(warmup):
        for run in sides.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            sides[name]()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(seconds[name]) for name in sides}


def ratio(one: Timing, other: Timing) -> float:
    """Median over rounds of one side's time divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which one call, not timed, raises the peak above what is in use before it."""
    gc.collect()
    give_back_freed_memory()  # else it hides what is taken anew
    before = _reset_peak_memory(device)
    run()
    return max(_peak_memory(device) - before, 0)


def _reset_peak_memory(device: torch.device) -> int:
    """Begin a new peak; returns the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak_memory(device)
    return _peak_memory(device)


def _peak_memory(device: torch.device) -> int:
    """Largest number of bytes in use since the last reset: on the GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = [line for line in _lines("/proc/self/status") if line.startswith("VmHWM")]
    if found:
        return int(found[0].split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
