"""Files that are whole or not there, and folders that one process uses at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from equimid.console import is_main_process
from equimid.errors import UserError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder made, and kept from other processes; on the main process, the others rely on it."""
    if not is_main_process():
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a folder")
    # after torchrun's restart the loaders of the process that was killed hold the lock for some seconds more
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    lock = FileLock(folder / ".lock", timeout=60 if restarted else 0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by another equimid process; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another --out") from None
    try:
        yield
    finally:
        lock.release()
