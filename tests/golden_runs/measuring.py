"""Records of every measurement, of one trained run and of its random reference."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golden_runs import table
from golden_runs.hashes import hexadecimal, of_picture
from golden_runs.process import command

__all__ = ["measure", "pretrain_measured", "records_of"]


def pretrain_measured() -> None:
    """The run, with its routine measurements, in the working folder."""
    command(table.MEASURED)


def measure(data: str, words: Sequence[str]) -> dict[str, Any]:
    """`equimid measure` on these images, which lie in the working folder as the run does."""
    command([*(word.format(data=data, out="measured") for word in table.MEASURE), *words])
    return records_of(Path("measured"))


def records_of(folder: Path) -> dict[str, Any]:
    """{"evaluation/metric/subject": [record, ...]}, in the order in which they were written."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / table.RECORDS).read_text().splitlines():
        record = json.loads(line)
        content = {
            "details": _pictures(
                {key: value for key, value in record["details"].items() if key not in table.SPELLED}, folder
            ),
            "n": record["n"],
            **{key: _exact(record[key]) for key in ("value", "low", "high")},
            "unit": record["unit"],
            "picture": _pictures(record["picture"], folder),
        }
        evaluation = table.RECORDED_AS.get(record["evaluation"], record["evaluation"])
        key = "/".join([evaluation, record["metric"], record["subject"]])
        found.setdefault(key, []).append({name: kept for name, kept in content.items() if kept not in (None, "")})
    return found


def _exact(value: float | None) -> str | float | None:
    return hexadecimal(value) if isinstance(value, float) else value


def _pictures(value: Any, folder: Path) -> Any:
    """Paths of pictures, whose names hold hashes of other things, as the hash of the pixels."""
    if isinstance(value, dict):
        return {key: _pictures(inner, folder) for key, inner in value.items()}
    if isinstance(value, str) and value.endswith((".png", ".jpg")) and (folder / value).is_file():
        return f"pixels {of_picture(folder / value)}"
    return value
