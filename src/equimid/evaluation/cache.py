"""Features on disk, by a key of their content: computed once per network, images and preprocessing."""

import hashlib
import os
import secrets
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from equimid.data import data_home

__all__ = ["cached", "store"]

_VERSION = "1"  # of what is computed: another one makes all that was stored before unknown
_GIB = 10.0  # the oldest go when there is more


def cached(*key: str) -> Tensor | None:
    """What was stored under that key, or None; a damaged file is as good as none."""
    file = _file(key)
    try:
        found = load_file(file)["features"]
        os.utime(file)  # the least recently used go first
        return found
    except (OSError, SafetensorError, KeyError):
        return None


def store(features: Tensor, *key: str) -> None:
    """Keep features (n, D) under that key, written beside and renamed; a full disk only costs the next run time."""
    file = _file(key)
    beside = file.with_suffix(f".{secrets.token_hex(4)}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"features": features.contiguous()}, beside)
        os.replace(beside, file)
        _forget(file)
    except (OSError, SafetensorError):
        beside.unlink(missing_ok=True)


def _file(key: tuple[str, ...]) -> Path:
    digest = hashlib.blake2b(repr((_VERSION, *key)).encode(), digest_size=16).hexdigest()
    return data_home() / "features" / f"{digest}.safetensors"


def _forget(newest: Path) -> None:
    """The least recently used files beyond $EQUIMID_CACHE_GIB (10)."""
    left = float(os.environ.get("EQUIMID_CACHE_GIB") or _GIB) * 2**30
    files = sorted(newest.parent.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        left -= file.stat().st_size
        if left < 0:
            file.unlink(missing_ok=True)
