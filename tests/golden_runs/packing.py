"""What the other commands write: shards."""

import json
from pathlib import Path
from typing import Any

from golden_runs import table
from golden_runs.hashes import of_bytes
from golden_runs.process import command

__all__ = ["pack"]


def pack(data: str, out: str) -> dict[str, Any]:
    """`equimid pack`: a hash of every file that it writes; of JSON the content."""
    command([word.format(out=out) for word in table.PACK[data]])
    found: dict[str, Any] = {}
    for file in sorted(Path(out).iterdir()):
        if file.suffix == ".json":
            found[file.name] = json.loads(file.read_text())
        elif not file.name.startswith("."):
            found[file.name] = of_bytes(file.read_bytes())
    return found
