"""Short fingerprints of tensors, pictures and folders; none of them depends on a name of equimid."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Tensors", "fingerprint", "hexadecimal", "of_bytes", "of_picture", "read_tensors"]

# by name: dtype, shape, bytes
Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]


def hexadecimal(value: float) -> str:
    """float.hex without the zeros at the end: all bits, no rounding."""
    return re.sub(r"\.?0*p", "p", value.hex())


def of_bytes(content: bytes) -> str:
    """SHA-256, the first 128 bits."""
    return hashlib.sha256(content).hexdigest()[:32]


def of_picture(file: Path) -> str:
    """Of the pixels in RGB: neither the name nor the way the file is compressed matters."""
    from PIL import Image

    with Image.open(file) as opened:
        image = opened.convert("RGB")
    return of_bytes(f"{image.size} ".encode() + image.tobytes())


def read_tensors(files: Sequence[Path]) -> Tensors:
    """Those of safetensors files, read without a library; rows of one tensor in several files are joined."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for file in sorted(files):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name == "__metadata__":
                continue
            low, high = entry["data_offsets"]
            dtype, shape, data = entry["dtype"], tuple(entry["shape"]), content[start + low : start + high]
            if name in found and shape:
                _, above, before = found[name]
                shape, data = (above[0] + shape[0], *shape[1:]), before + data
            found[name] = dtype, shape, data
    return found


def fingerprint(tensors: Tensors) -> dict[str, object]:
    """What tells renamed tensors from changed bits.

    tensors:   of the tensors alone, in the order of their names
    any order: of the tensors alone, whatever their names are
    names:     of the names alone
    by name:   names with their numbers as *: how many there are, and a hash of them
    """
    sums = {
        name: of_bytes(f"{dtype} {shape} ".encode() + data) for name, (dtype, shape, data) in sorted(tensors.items())
    }
    groups: dict[str, list[str]] = {}
    for name, sum_ in sums.items():
        groups.setdefault(re.sub(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])", "*", name), []).append(sum_)
    return {
        "tensors": _of_texts(sums.values()),
        "any order": _of_texts(sorted(sums.values())),
        "names": _of_texts(sums),
        "by name": {name: f"{len(group)} x {_of_texts(group)[:12]}" for name, group in groups.items()},
    }


def _of_texts(texts: object) -> str:
    return of_bytes("\n".join(texts).encode())  # type: ignore[call-overload]
