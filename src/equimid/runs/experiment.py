"""A declared study: arms, seeds, settings, measurements and comparisons in one YAML file, written before the first run.

    equimid sweep experiments/e1.yaml --out FOLDER

trains and measures every cell (arm, seed) that has no file yet, seed by seed. A finished cell is one small JSON file
beside the study, experiments/e1/control-seed0.json: its settings, its records, and where it ran. These files are kept
in the repository, so that any machine goes on where another stopped; the runs' folders stay in FOLDER. Several
processes may share a study.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from equimid.config import Config, flatten
from equimid.console import is_main_process
from equimid.data import open_source
from equimid.errors import UserError
from equimid.evaluation.registry import MEASUREMENTS
from equimid.files import BusyError, held, write_text
from equimid.recipes import configured
from equimid.records import Record, Subject, read_records
from equimid.runs.evaluate import evaluate
from equimid.runs.facts import provenance
from equimid.runs.pretrain import on_one_device, pretrain
from equimid.settings import explain, setting, settings
from equimid.task import Task

__all__ = ["Arm", "Experiment", "read_experiment", "run_experiment"]

logger = logging.getLogger("equimid")

SCHEMA = 1  # of a cell's file
# kept of a cell: the network's values and its references of place; pictures and the other references stay in the run
_REFERENCES = {Subject.NOT_CARRIED, Subject.MISMATCHED}
_KEPT = {"place", "retrieval", "centred_cosine", "between_images", "between_positions", "inside_images"}


@settings()
class Arm:
    """One way to train."""

    recipe: Annotated[str, setting("name of the recipe")]
    settings: Annotated[tuple[str, ...], setting("of this arm, key=value")] = ()


@settings()
class Transfer:
    """The same networks on other images."""

    data: Annotated[str, setting("images, as a command line names them")]
    measure: Annotated[tuple[str, ...], setting("names of measurements")]


@settings()
class Experiment:
    """A study, as its file declares it.

    Raises:
        UserError: a value has another type, a measurement is unknown, or names do not match.
    """

    name: Annotated[str, setting("of the study and of the folder of its cells")]
    question: Annotated[str, setting("what the study asks, one sentence")]
    data: Annotated[str, setting("images to train on and to probe, as a command line names them")]
    arms: Annotated[dict[str, Arm], setting("by name; the first is the baseline", min_length=1)]
    seeds: Annotated[tuple[int, ...], setting("of every arm, each once", min_length=1)]
    measure: Annotated[tuple[str, ...], setting("names of measurements")]
    settings: Annotated[tuple[str, ...], setting("of every arm, key=value")] = ()
    transfer: Annotated[tuple[Transfer, ...], setting("measurements of the same networks on other images")] = ()
    endpoints: Annotated[tuple[dict[str, Any], ...], setting("what is compared, see experiments/evidence.py")] = ()
    contrast: Annotated[tuple[str, ...], setting("[arm, baseline] of the endpoints")] = ()
    explored: Annotated[
        dict[str, list[Any]],
        setting("{pairs: [[arm, baseline], ...], endpoints: [...]}, outside of that family: to be read, not to decide"),
    ] = field(default_factory=dict)
    notes: Annotated[str, setting("what a reader should know")] = ""

    def __post_init__(self) -> None:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {list(self.seeds)}; it must name each seed once")
        for name in [name for names in self.measured.values() for name in names]:
            if name not in MEASUREMENTS:
                raise ValueError(f"measure names {name!r}; there are {', '.join(MEASUREMENTS)}")
        if set(self.contrast) - set(self.arms):
            raise ValueError(f"contrast is {list(self.contrast)}, and the arms are {', '.join(self.arms)}")

    @property
    def measured(self) -> dict[str, tuple[str, ...]]:
        """{data: names of measurements}."""
        return {self.data: self.measure} | {part.data: part.measure for part in self.transfer}

    def config(self, arm: str, seed: int) -> Config:
        """Settings of one cell.

        Raises:
            UserError: the recipe or a setting is wrong.
        """
        chosen = self.arms[arm]
        return configured(chosen.recipe, [*self.settings, *chosen.settings, f"data.source={self.data}", f"seed={seed}"])


def read_experiment(file: Path) -> Experiment:
    """The study that a YAML file declares.

    Raises:
        UserError: it cannot be read, a key is missing or unknown, or a value has another type.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as a study: {' '.join(str(error).split())}") from None
    keys = ", ".join(f.name for f in fields(Experiment))
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}; expected the keys {keys}")
    try:
        return TypeAdapter(Experiment).validate_python(content)
    except ValidationError as error:
        raise UserError(f"{explain(error, '', Experiment, str(file))}; a study has the keys {keys}") from None


def run_experiment(file: Path, out: Path) -> list[Path]:
    """Train and measure the cells that have no file yet, into `out`; returns the files that were written.

    Raises:
        UserError: before anything runs, where the study, a setting or the data is wrong.
        KeyboardInterrupt: a run was stopped by a signal; its checkpoint is written.
    """
    experiment = read_experiment(file)
    for arm in experiment.arms:
        config = on_one_device(experiment.config(arm, experiment.seeds[0]))
        Task(config.backbone, config.method, config.addons, config.plan(), config.seed)
    for data in experiment.measured:
        if not Path(data).exists():
            open_source(data)  # a name such as digits, or the reason why it is none
    cells = [(arm, seed) for seed in experiment.seeds for arm in experiment.arms]
    missing = [cell for cell in cells if not _cell_file(file, *cell).exists()]
    logger.info("%s: %d of %d cells are finished", experiment.name, len(cells) - len(missing), len(cells))
    written = []
    for number, (arm, seed) in enumerate(missing, start=1):
        target = _cell_file(file, arm, seed)
        with _alone(out / arm, seed) as alone:
            if not alone:
                logger.info("%d of %d: %s seed %d is run by another process", number, len(missing), arm, seed)
                continue
            if target.exists():  # another process has finished it meanwhile
                continue
            logger.info("%d of %d: %s seed %d", number, len(missing), arm, seed)
            _run_cell(experiment, arm, seed, out / arm / f"seed={seed}", target)
        written.append(target)
    return written


@contextmanager
def _alone(place: Path, seed: int) -> Iterator[bool]:
    """Whether no other process runs this cell; several share a study's cells."""
    with ExitStack() as stack:
        try:
            stack.enter_context(held(place / f".seed={seed}.lock", "another process runs it", "choose another --out"))
        except BusyError:
            yield False
            return
        yield True


def _cell_file(file: Path, arm: str, seed: int) -> Path:
    return file.with_suffix("") / f"{arm}-seed{seed}.json"


def _run_cell(experiment: Experiment, arm: str, seed: int, folder: Path, target: Path) -> None:
    config = on_one_device(experiment.config(arm, seed))
    started, cpu = time.strftime("%Y-%m-%d"), time.process_time()
    origin = folder / "provenance.json"
    if not origin.exists() and is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        origin.write_text(json.dumps(provenance()))
    outcome = pretrain(config, folder, finish=False)  # measured is what the study declares
    if outcome.stopped_by is not None:
        raise KeyboardInterrupt
    records = folder / "records.jsonl"
    done = {(r.evaluation, r.data) for r in (read_records(records) if records.exists() else [])}
    for data, names in experiment.measured.items():
        todo = [name for name in names if (_evaluation_of(name), data) not in done]
        if todo:
            evaluate(str(folder), data, todo, references=False)
    if not is_main_process():
        return
    kept = [_compact(r, experiment.data) for r in read_records(records) if _is_kept(r, experiment)]
    cell = {
        "schema": SCHEMA,
        "study": experiment.name,
        "arm": arm,
        "seed": seed,
        "date": started,
        "trained": json.loads(origin.read_text()),
        "measured": provenance(),
        "cpu_seconds_of_this_call": round(time.process_time() - cpu),
        "settings": flatten(config),
        "records": kept,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(cell, indent=0).replace("\n", " ").replace("}, {", "},\n{") + "\n")


def _evaluation_of(name: str) -> str:
    """What the records of a measurement call it."""
    return MEASUREMENTS[name].evaluation or name.replace("-", "_")


def _is_kept(r: Record, experiment: Experiment) -> bool:
    measured = experiment.measured.get(r.data, ())
    if r.value is None or r.evaluation not in {_evaluation_of(name) for name in measured}:
        return False
    if r.evaluation == "equivariance":
        kept = r.metric in _KEPT and "angle" not in r.details
        return kept and (r.subject == Subject.BACKBONE or (r.subject in _REFERENCES and r.metric == "place"))
    return r.subject == Subject.BACKBONE


def _compact(r: Record, data: str) -> dict[str, Any]:
    """Without what the cell says; with the data where they are not those of the study."""
    entry = {
        key: value for key, value in asdict(r).items() if key in ("evaluation", "metric", "subject", "n", "details")
    }
    return entry | {"value": round(r.value or 0.0, 6)} | ({} if r.data == data else {"data": r.data})
