"""Files that are whole or not there, and folders that one process uses at a time."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from equimid.console import is_main_process
from equimid.errors import UserError

__all__ = ["BusyError", "atomic_write", "held", "locked", "write_bytes", "write_json", "write_text"]


@contextmanager
def atomic_write(file: Path) -> Iterator[Path]:
    """A place beside `file` to write to. Where the block ends well it is synced to the disk and takes the name of
    `file`, so that a reader sees the old file or the new one; where it fails it is removed."""
    beside = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield beside
        with beside.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(beside, file)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def write_bytes(file: Path, content: bytes) -> None:
    """Write a whole file; see `atomic_write`."""
    with atomic_write(file) as beside:
        beside.write_bytes(content)


def write_text(file: Path, text: str) -> None:
    """Write a whole file of text; names of files in it need not be valid text. See `atomic_write`."""
    with atomic_write(file) as beside:
        beside.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(file: Path, content: Any) -> None:
    """Write a whole file of JSON; see `atomic_write`."""
    write_text(file, json.dumps(content, indent=1) + "\n")


class BusyError(UserError):
    """Another process holds the lock."""


@contextmanager
def held(lock: Path, busy: str, advice: str, timeout: float = 0) -> Iterator[None]:
    """Hold a lock file, whose folder is made.

    Args:
        busy: the message where another process holds it.
        advice: what to do where the folder cannot be written into.
        timeout: seconds to wait for it.

    Raises:
        BusyError: another process holds it.
        UserError: the folder cannot be written into.
    """
    file_lock = FileLock(lock, timeout=timeout)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        raise BusyError(busy) from None
    except OSError as error:
        raise UserError(f"cannot write into {lock.parent}: {error.strerror}; {advice}") from None
    try:
        yield
    finally:
        file_lock.release()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder made, and kept from other processes; on the main process, the others rely on it.

    Raises:
        UserError: it is a file, in use, or cannot be written into.
    """
    if not is_main_process():
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; --out must name a folder")
    # after torchrun's restart the loaders of the process that was killed hold the lock for some seconds more
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    busy = f"{folder} is in use by another equimid process; wait for it, or choose another --out"
    with held(folder / ".lock", busy, "choose another --out", timeout=60 if restarted else 0):
        yield
