"""sweep.yaml: what a sweep is to run, and what it has run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from equimid.errors import UserError

__all__ = ["SCHEMA", "SweepPlan", "read_sweep"]

SCHEMA = 1  # of sweep.yaml


@dataclass(frozen=True)
class SweepPlan:
    """What sweep.yaml holds.

    Attributes:
        recipe:       of every run; so are `data` and `seeds`.
        settings:     of every run, key=value.
        vary:         {key: values}, the first of each is the baseline.
        combinations: {folder: name}, the baseline first.
        finished:     runs as "folder/seed=0".
        failed:       {run: why}.
    """

    recipe: str
    data: str
    settings: Sequence[str]
    seeds: Sequence[int]
    vary: Mapping[str, Sequence[str]]
    combinations: Mapping[str, str] = field(default_factory=dict)
    finished: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA


def read_sweep(out: Path) -> SweepPlan:
    """The folder's sweep.yaml.

    Raises:
        UserError: there is none, it cannot be read, or a newer version wrote it.
    """
    file = out / "sweep.yaml"
    if not file.is_file():
        raise UserError(f"{out} is not a sweep: it has no sweep.yaml; give the folder that 'equimid sweep' wrote")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if content["schema"] > SCHEMA:
            raise UserError(
                f"{file} was written by a newer version (schema {content['schema']}, this one reads {SCHEMA}); "
                "update equimid"
            )
        return SweepPlan(**{key: value for key, value in content.items() if key in SweepPlan.__dataclass_fields__})
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{file} does not hold a sweep ({' '.join(str(error).split())}); restore it") from None
