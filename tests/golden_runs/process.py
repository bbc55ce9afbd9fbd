"""Every case in a process of its own: nothing that one leaves behind reaches the next one.

The processes are forked from one that has loaded the libraries, which takes longer than most cases; it runs nothing of
torch and starts no thread. Names of libraries stay in a refactor. equimid itself is imported anew in each process.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from golden_runs.table import call

__all__ = ["CaseError", "command", "isolated", "load_libraries"]

_LIBRARIES = (
    "torch", "torchvision", "timm", "lightning.fabric", "scipy.stats", "sklearn.linear_model", "sklearn.datasets",
    "matplotlib.figure", "pydantic", "tyro", "safetensors.torch", "torch.utils.tensorboard",
    "tensorboard.backend.event_processing.event_file_loader",
)  # fmt: skip


class CaseError(Exception):
    """A case could not be run: what it said last."""


def load_libraries() -> None:
    """Once, before the first case."""
    for name in _LIBRARIES:
        importlib.import_module(name)


def isolated(function: Callable[..., Any], *arguments: Any, folder: Path, given: Sequence[Path] = ()) -> Any:
    """function(*arguments) in a process that works in the new folder `folder`; a log of what it prints lies beside it.

    Args:
        given: files and folders that it finds there under their names, as links.

    Raises:
        CaseError: it failed.
    """
    folder.mkdir(parents=True)
    for entry in given:
        (folder / entry.name).symlink_to(entry.resolve())
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    log = folder.with_name(f"{folder.name}.log")
    process = context.Process(target=_answer, args=(sender, function, arguments, folder, log))
    process.start()
    sender.close()
    try:
        failed, answer = receiver.recv()
    except EOFError:
        failed, answer = True, f"the process ended\n{_tail(log)}"
    except BaseException:
        process.terminate()  # it does not outlive this one
        raise
    finally:
        process.join()
    if failed:
        raise CaseError(answer)
    return answer


def command(words: Sequence[str]) -> str:
    """The command line with these words, in this process; returns its standard output.

    Raises:
        CaseError: its exit status is not 0.
    """
    before, sys.argv = sys.argv, ["equimid", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            call("main")()
    except SystemExit as end:
        if end.code:
            raise CaseError(f"equimid {' '.join(words)}: exit status {end.code}") from None
    finally:
        sys.argv = before
    return printed.getvalue()


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...], folder: Path, log: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with log.open("w") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)
    os.chdir(folder)
    # features and lists of checked images that another case computed are not read
    os.environ["EQUIMID_DATA"] = str(folder / "cache")
    try:
        sender.send((False, function(*arguments)))
    except BaseException:
        sys.stderr.flush()
        sender.send((True, f"{traceback.format_exc()}{_tail(log)}"))


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
