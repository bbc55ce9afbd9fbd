"""What lies in the folder of a run, read and not yet arranged."""

import base64
import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from equimid.errors import UserError
from equimid.records import Record, Subject, read_facts, read_records

__all__ = ["Run", "names", "read_run"]

SETTINGS = ("config.yaml", "model.yaml")  # a run's, and those of a network of others that was measured
SIGNATURES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


@dataclass(frozen=True)
class Run:
    """What lies in one run's folder, or in one of measurements of a network that was not trained here.

    Attributes:
        index:    its place on the page, which decides its colour.
        file:     of the settings: config.yaml or model.yaml.
        text:     of that file.
        settings: {dotted name: value}; a group that is off is a name whose value is None.
        facts:    of run.json: "views", "steps" and "total_steps"; {} where it is not there.
        counts:   "usable" and "listed" images, where they are known.
        curves:   {column of metrics.csv: (steps, values)}.
    """

    path: Path
    name: str
    index: int
    file: str
    text: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    counts: Mapping[str, int]
    curves: Mapping[str, tuple[list[float], list[float]]]
    records: Sequence[Record]

    @property
    def trained_here(self) -> bool:
        """A run's folder, with the settings of its training."""
        return self.model is None

    @property
    def model(self) -> str | None:
        """The network of others that was measured, such as "timm:NAME"; None for a run."""
        return None if self.file == SETTINGS[0] else str(self.settings.get("model", "an unnamed network"))

    @property
    def subject(self) -> str:
        """What records call the folder's own network."""
        return Subject.RANDOM if self.model and self.setting("weights") == "random" else Subject.BACKBONE

    @property
    def ser_layers(self) -> tuple[Any, ...]:
        """The layers that SER regularises."""
        layers = self.setting("ser.layers")
        return tuple(layers) if isinstance(layers, list) else () if layers is None else (layers,)

    @property
    def addons(self) -> dict[str, Any]:
        """{add-on: weight}: the groups of settings that have one."""
        weights = {key: value for key, value in self.settings.items() if key.endswith(".weight")}
        groups = {key.removesuffix(".weight"): value for key, value in weights.items()}
        return {name: weight for name, weight in groups.items() if "." not in name and name != "method"}

    @property
    def stopped_at(self) -> tuple[int, int] | None:
        """(steps done, steps wanted) of a run that was measured before its training ended."""
        done, total = self.facts.get("steps"), self.facts.get("total_steps")
        return (done, total) if isinstance(done, int) and isinstance(total, int) and done < total else None

    @property
    def views(self) -> str | None:
        """The view setting that it was trained with, such as "2 x 224 + 4 x 96"; None where it is not known."""
        views = self.facts.get("views")
        return None if views is None else str(views)

    def setting(self, name: str) -> Any:
        """The setting of that dotted name, None where there is none."""
        return self.settings.get(name)

    def last(self, column: str) -> float | None:
        """The last value of a column of metrics.csv."""
        return next(reversed(self.curves.get(column, ([], []))[1]), None)

    def picture(self, name: str) -> str:
        """A picture of the run's own folder as a data URL; "" where it is missing, elsewhere, or no PNG or JPEG."""
        path = (self.path / name).resolve()
        inside = path.is_relative_to(self.path.resolve()) and path.is_file()
        content = path.read_bytes() if inside else b""
        kind = next((kind for signature, kind in SIGNATURES.items() if content.startswith(signature)), None)
        return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if kind else ""


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
    counted = _mapping(counts, _read(counts), "JSON", "delete it") if counts.is_file() else {}
    return Run(
        path=path,
        name=name,
        index=index,
        file=settings.name,
        text=text,
        settings=dict(_flat(_mapping(settings, text, "YAML", "restore it"))),
        facts=_facts(path),
        counts={name: counted[name] for name in ("usable", "listed") if type(counted.get(name)) is int},
        curves=_read_metrics(metrics) if metrics.is_file() else {},
        records=read_records(records) if records.is_file() else [],
    )


def _facts(folder: Path) -> dict[str, Any]:
    """Of run.json; {} where it cannot be read. An older version kept them as a record."""
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        for line in (folder / "records.jsonl").read_bytes().splitlines():
            if b'"training"' in line and (entry := json.loads(line))["evaluation"] == "training":
                facts = {"views": entry["details"].get("setting"), **entry["details"]}
    return facts | read_facts(folder)


def _mapping(path: Path, text: str, language: str, advice: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text) if language == "YAML" else json.loads(text)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not {language} ({' '.join(str(error).split())}); {advice}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected values by name; {advice}")
    return content


def _flat(group: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
    reader = csv.DictReader(lines)
    rows: dict[float, dict[str, float]] = {}
    for row in reader:
        values = {k: v for k, cell in row.items() if isinstance(k, str) and (v := _float(cell)) is not None}
        if "step" in values:
            rows[values["step"]] = values  # the later line of a step counts
    steps = {name: [step for step in sorted(rows) if name in rows[step]] for name in reader.fieldnames or ()}
    return {name: (known, [rows[step][name] for step in known]) for name, known in steps.items()}


def _float(cell: str | None) -> float | None:
    try:
        return float(cell or "")
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
