"""Records: what an evaluation found, one JSON line each. Evaluations append them, the report reads them."""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from equimid.errors import UserError
from equimid.files import write_text

__all__ = ["FACTS", "SCHEMA", "Record", "Subject", "read_facts", "read_records", "write_records"]

SCHEMA = 1
FACTS = "run.json"  # facts of a run that are neither settings nor measurements

_RENAMED = {"pose_readback": "pose_probe"}  # evaluations, as an older version wrote them


class Subject(StrEnum):
    """What a value is of: the network, or a reference beside it."""

    BACKBONE = "backbone"
    RANDOM = "random"  # a network of the same shape with random weights
    PIXELS = "pixels"  # the image's pixels at 32 px
    PATCH_COLOURS = "patch_colours"  # the mean colour of every patch
    NOT_CARRIED = "not_carried"  # the map, left where it was
    MISMATCHED = "mismatched"  # the map of another image
    UNTRAINED_NECK = "untrained neck"  # the network below a detector before its training


@dataclass(frozen=True)
class Record:
    """One measured value.

    Attributes:
        evaluation: such as "knn", "linear", "equivariance" or "feature_maps".
        metric: such as "top1", "place", "retrieval" or "picture".
        value: in `unit` ("%", "" for a cosine); None for a picture, and where details say "not_measurable" and why.
        n: number of images (or pairs) behind the value.
        subject: a `Subject`.
        data: images that it was measured on, as the user named them.
        seed: of the measurement's own randomness.
        checkpoint: short hash of the weights; "" for a reference.
        low, high: 95 % interval, or None where none is known.
        details: what else names the value, such as {"layer": 3, "kind": "flip"}.
        picture: path of a picture relative to the run folder, or None.
        schema: version of this form.
    """

    evaluation: str
    metric: str
    value: float | None
    n: int
    subject: str
    data: str
    seed: int
    checkpoint: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    picture: str | None = None
    schema: int = SCHEMA


def read_facts(folder: Path) -> dict[str, Any]:
    """A run's run.json; {} where there is none, or none that can be read: only words on the run depend on it."""
    try:
        content = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_records(path: Path) -> list[Record]:
    """All records of a file, oldest first.

    Raises:
        UserError: a line is not a record, or was written by a newer version.
    """
    records = []
    known = {f.name for f in fields(Record)}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line.decode())
            if entry["schema"] > SCHEMA:
                raise UserError(
                    f"{path}, line {number}: written by a newer version (schema {entry['schema']}, "
                    f"this one reads {SCHEMA}); update equimid"
                )
            if entry["evaluation"] == "training":
                continue  # of an older version: run.json has these facts now
            entry["evaluation"] = _RENAMED.get(entry["evaluation"], entry["evaluation"])
            records.append(Record(**{k: v for k, v in entry.items() if k in known}))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number} is not a record ({error}); delete that line, or move the file aside "
                "and measure again"
            ) from None
    return records


def write_records(path: Path, new: list[Record]) -> None:
    """Add records, replacing those of the same evaluations on the same data (a second run is not a second n)."""
    replaced = {(r.evaluation, r.data) for r in new}
    old = read_records(path) if path.exists() else []
    kept = [r for r in old if (r.evaluation, r.data) not in replaced]
    write_text(path, "".join(json.dumps(asdict(r)) + "\n" for r in [*kept, *new]))
