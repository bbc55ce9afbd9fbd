"""What lies in the folder of a run, read and not yet arranged."""

import base64
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equimid.errors import UserError
from equimid.records import Record, read_records

__all__ = ["Run", "names", "read_run"]

SETTINGS = ("config.yaml", "model.yaml")  # a run's, and those of a network of others that was measured
SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Run:
    """What lies in one run's folder, or in one of measurements of a network that was not trained here."""

    path: Path
    name: str
    index: int
    file: str  # of the settings: config.yaml or model.yaml
    text: str
    config: Mapping[str, Any]
    counts: Mapping[str, int]
    curves: Mapping[str, tuple[list[float], list[float]]]  # column -> steps, values
    records: Sequence[Record]

    @property
    def trained_here(self) -> bool:
        """A run's folder, with the settings of its training."""
        return self.model is None

    @property
    def model(self) -> str | None:
        """The network of others that was measured, such as "timm:NAME"; None for a run."""
        return None if self.file == "config.yaml" else str(self.config.get("model", "an unnamed network"))

    @property
    def subject(self) -> str:
        """What records call the folder's own network."""
        return "random" if self.model and self.config.get("weights") == "random" else "backbone"

    @property
    def ser_layers(self) -> tuple[Any, ...]:
        """The layers that SER regularises."""
        layers = self.setting("ser.layers")
        return tuple(layers) if isinstance(layers, list) else () if layers is None else (layers,)

    @property
    def addons(self) -> dict[str, Any]:
        """{add-on: weight}: the groups of settings that have one."""
        groups = {name: group for name, group in self.config.items() if isinstance(group, Mapping)}
        return {name: group["weight"] for name, group in groups.items() if "weight" in group and name != "method"}

    @property
    def stopped_at(self) -> tuple[int, int] | None:
        """(steps done, steps wanted) of a run that was measured before its training ended."""
        for r in self.records:
            done, wanted = r.details.get("steps"), r.details.get("total_steps")
            if r.evaluation == "training" and isinstance(done, int) and isinstance(wanted, int) and done < wanted:
                return done, wanted
        return None

    @property
    def views(self) -> str | None:
        """The view setting that it was trained with, such as "2 x 224 + 4 x 96"; None where no record tells it."""
        settings = [r.details.get("setting") for r in self.records if (r.evaluation, r.metric) == ("training", "views")]
        return str(settings[-1]) if settings else None

    def picture(self, name: str) -> str:
        """A picture of the run's own folder as a data URL; "" where it is missing, elsewhere, or no PNG or JPEG."""
        path = (self.path / name).resolve()
        inside = path.is_relative_to(self.path.resolve()) and path.is_file()
        content = path.read_bytes() if inside else b""
        kind = next((kind for signature, kind in SIGNATURES.items() if content.startswith(signature)), None)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if kind else ""

    def setting(self, dotted: str) -> Any:
        """The setting of that name, None where any part of the way is missing."""
        value: Any = self.config
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


def read_run(path: Path, name: str, index: int) -> Run:
    """Read a folder of a run or of measurements; all but config.yaml or model.yaml may be missing.

    Raises:
        UserError: the folder is neither, or a file in it cannot be read.
    """
    counts, metrics, records = (path / n for n in ("data.json", "metrics.csv", "records.jsonl"))
    settings = next((path / n for n in SETTINGS if (path / n).is_file()), None)
    if settings is None:
        raise UserError(
            f"{path} is not a run: found no {' and no '.join(SETTINGS)} in it, expected the folder that 'equimid "
            "pretrain' or 'equimid evaluate' wrote; check the path"
        )
    text = _read(settings)
    counted = _mapping(counts, _read(counts), json.loads, "JSON", "delete it") if counts.is_file() else {}
    return Run(
        path=path,
        name=name,
        index=index,
        file=settings.name,
        text=text,
        config=_mapping(settings, text, yaml.safe_load, "YAML", "restore it"),
        counts={name: counted[name] for name in ("usable", "listed") if type(counted.get(name)) is int},
        curves=_read_metrics(metrics) if metrics.is_file() else {},
        records=read_records(records) if records.is_file() else [],
    )


def _mapping(path: Path, text: str, parse: Callable[[str], Any], language: str, advice: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not {language} ({' '.join(str(error).split())}); {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected values by name; {advice}")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 ({error.reason}); restore it") from None


def _read_metrics(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Column -> steps and values. The last line may be half written, a step may return after a resume."""
    lines = _read(path).splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows: dict[float, dict[str, float]] = {}
    columns: dict[str, None] = {}
    for row in csv.DictReader(lines):
        cells = {k: _float(v) for k, v in row.items() if isinstance(k, str) and isinstance(v, str)}
        values = {k: v for k, v in cells.items() if v is not None}
        columns |= dict.fromkeys(cells)
        if "step" in values:
            rows[values["step"]] = values  # the later line of a step counts
    steps = {name: [step for step in sorted(rows) if name in rows[step]] for name in columns}
    return {name: (known, [rows[step][name] for step in known]) for name, known in steps.items()}


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def names(paths: Sequence[Path]) -> list[str]:
    """The folder's own name, with as many parents as it takes to tell the runs apart."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        short = ["/".join(p[-depth:]) for p in parts]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]
