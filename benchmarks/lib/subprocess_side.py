"""One side of a comparison, run in a process of its own, with the system's allocator as other programs have it."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from lib.timing import growth

__all__ = ["SubprocessSide"]

Side = Callable[[], object]


class SubprocessSide:
    """Called, it runs once over there and waits; so does `growth`, for its memory; `close` ends the process.

    Args:
        make: of the module's top level; `make(*arguments)` gives what is run, made over there.
    """

    def __init__(self, make: Callable[..., Side], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, torch.get_num_threads(), make, arguments), daemon=True
        )
        self._process.start()
        there.close()

    def __call__(self) -> None:
        self._ask("run")

    def growth(self) -> int:
        """See `measuring.growth`."""
        return self._ask("measure")

    def _ask(self, what: str) -> int:
        self._here.send(what)
        try:
            error, grown = self._here.recv()
        except EOFError:
            raise RuntimeError("the process of the other side has ended; was there too little memory?") from None
        if error:
            raise RuntimeError(error)
        return int(grown)

    def close(self) -> None:
        self._here.close()
        self._process.join()


def _serve(there: Connection, threads: int, make: Callable[..., Side], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    run: Side | None = None
    while True:
        try:
            what = there.recv()
        except EOFError:
            return
        try:
            run = run or make(*arguments)
            if what == "measure":
                there.send(("", growth(run, torch.device("cpu"))))
            else:
                run()
                there.send(("", 0))
        except Exception:
            there.send((traceback.format_exc(), 0))
