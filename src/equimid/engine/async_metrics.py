"""The numbers of a step on their way to the host: summed over ranks, copied while the device computes, read later."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from equimid.distributed import gather_detached, sum_detached

__all__ = ["AsyncMetrics", "LoaderClock"]


class AsyncMetrics:
    """Scalars of one step, summed over ranks: the same on every rank, and not finite if they are so on any.

    Args:
        step: from 0.
        numbers: scalars on one device, by name.
        cls: (b, D) embeddings of this rank; `read` gives those of all ranks.
    """

    def __init__(self, step: int, numbers: Mapping[str, Tensor], cls: Tensor | None = None) -> None:
        self.step, self._names = step, tuple(numbers)
        values = sum_detached(torch.stack([value.detach().float() for value in numbers.values()]))
        everything = None if cls is None else gather_detached(cls.float())
        self._ready: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            # a copy that is asked for later would wait for everything that was queued until then
            values, everything = _to_pinned(values), None if everything is None else _to_pinned(everything)
            self._ready = torch.cuda.Event()
            self._ready.record()
        self._values, self._cls = values, everything

    def read(self) -> tuple[dict[str, float], Tensor | None]:
        """Wait for the device. Returns sums by name, and the embeddings of all ranks on the host."""
        if self._ready is not None:
            self._ready.synchronize()
        values = dict(zip(self._names, self._values.tolist(), strict=True))
        return values, None if self._cls is None else self._cls.cpu()


def _to_pinned(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


class LoaderClock:
    """Takes batches and measures how long the device waits for them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds, self._since = 0.0, time.perf_counter()
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def take(self, batches: Iterator[Any]) -> Any:
        """The next batch."""
        if not self._cuda:
            began = time.perf_counter()
            batch = next(batches)
            self._seconds += time.perf_counter() - began
            return batch
        # the first event passes when the device has done all that was queued, the second when the host has the batch
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        batch = next(batches)
        after.record()
        self._events.append((before, after))
        return batch

    def waited(self) -> float:
        """Fraction of the time since the last call that was spent waiting for batches, 0..1."""
        passed = [pair for pair in self._events if pair[1].query()]
        self._events = self._events[len(passed) :]
        seconds: float = self._seconds + sum(before.elapsed_time(after) for before, after in passed) / 1000
        now = time.perf_counter()
        fraction = seconds / max(now - self._since, 1e-9)
        self._seconds, self._since = 0.0, now
        return min(1.0, fraction)
