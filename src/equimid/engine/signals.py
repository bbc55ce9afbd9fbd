"""Ctrl-C, SIGTERM and SIGUSR1 (a scheduler's warning) finish the step; a second Ctrl-C stops at once."""

import signal
from types import FrameType, TracebackType

__all__ = ["StopRequest"]


# SIGUSR1 is not everywhere
_NOTED = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


class StopRequest:
    """While active, the first SIGINT, SIGTERM or SIGUSR1 is noted in `signal` instead of ending the process."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in _NOTED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
