"""Features on disk, by a key of their content: computed once per network, images and preprocessing."""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from equimid.data import data_home
from equimid.errors import UserError
from equimid.files import atomic_write

__all__ = ["cached", "store"]

_VERSION = "1"  # of what is computed: another one makes all that was stored before unknown
_GIB = 10.0  # the oldest go when there is more
_ABANDONED = 86400.0  # seconds; a killed process leaves what it was writing


def cached(*key: str) -> Tensor | None:
    """What was stored under that key, or None; a damaged file is as good as none.

    Raises:
        UserError: as `store`: $EQUIMID_CACHE_GIB is no number of GiB; told before anything is computed.
    """
    _bound()
    file = _file(key)
    try:
        features = load_file(file)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
    with suppress(OSError):  # of a cache that may only be read
        os.utime(file)  # the least recently used go first
    return features


def store(features: Tensor, *key: str) -> None:
    """Keep features (n, D) under that key; a full disk only costs the next run time."""
    file = _file(key)
    with suppress(OSError, SafetensorError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as beside:
            save_file({"features": features.contiguous()}, beside)
        _forget(file)


def _file(key: tuple[str, ...]) -> Path:
    digest = hashlib.blake2b(repr((_VERSION, *key)).encode(), digest_size=16).hexdigest()
    return data_home() / "features" / f"{digest}.safetensors"


def _forget(newest: Path) -> None:
    """The least recently used files beyond $EQUIMID_CACHE_GIB (10)."""
    left = _bound()
    used = []
    for file in newest.parent.iterdir():
        with suppress(OSError):  # another process may have removed it
            status = file.stat()
            if file.suffix == ".safetensors":
                used.append((status.st_mtime_ns, status.st_size, file))
            elif file.suffix == ".tmp" and status.st_mtime < time.time() - _ABANDONED:
                file.unlink()
    for _, size, file in sorted(used, reverse=True):
        left -= size
        if left < 0:
            file.unlink(missing_ok=True)


def _bound() -> float:
    """Bytes that may be kept.

    Raises:
        UserError: the variable is no number of GiB.
    """
    value = os.environ.get("EQUIMID_CACHE_GIB") or _GIB
    try:
        bound = float(value)
    except ValueError:
        bound = -1.0
    if not bound >= 0:
        raise UserError(f"EQUIMID_CACHE_GIB is {value!r}; expected how many GiB of features may be kept, such as 10")
    return bound * 2**30
