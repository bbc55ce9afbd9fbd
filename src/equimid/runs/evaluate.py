"""Measure a network, of a run or of others: records into its folder, and a page."""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from equimid.backbones import Weights
from equimid.config import Config, load_config, override
from equimid.console import is_main_process, progress_bar
from equimid.engine import latest_checkpoint, make_fabric
from equimid.errors import UserError
from equimid.evaluation import (
    Measurement,
    PatchColours,
    Pixels,
    Scope,
    Study,
    find_measurement,
    labelled_splits,
)
from equimid.files import locked, write_text
from equimid.records import Record, Subject, read_records, write_records
from equimid.report import write_report
from equimid.runs.facts import note_training
from equimid.runs.networks import first_seed, images_of, open_network, run_of

__all__ = ["ROUTINE", "evaluate", "is_measured", "measure_run", "study_of"]

logger = logging.getLogger("equimid")

# what every run is measured by; the first ones where there are labels
_PROBES = ("knn", "linear")
ROUTINE = ("equivariance", "feature-maps", "attention", "neighbours", "explorer")


def measure_run(config: Config, folder: Path, data: str, device: torch.device) -> Path:
    """The routine measurements of a run's network on `data`; then the report, whose path is returned."""
    study = study_of(str(folder), data, config, folder, device)
    note_training(config, folder)
    _measure(study, [find_measurement(name) for name in _routine(data)], data, None)
    return write_report([folder], folder / "report.html")


def evaluate(
    model: str,
    data: str | None = None,
    names: Sequence[str] = (),
    *,
    train: str | None = None,
    out: Path | None = None,
    weights: Weights = "auto",
    random: bool = False,
    references: bool = True,
    settings: Sequence[str] = (),
) -> Path:
    """Measure any network; returns the path of the page.

    Args:
        model: a run's folder, a backbone's folder, "timm:NAME" or "hf:NAME".
        data: what it is measured on; by default a run's own images.
        names: of MEASUREMENTS; none = the routine: kNN and linear probe where there are labels, equivariance, pictures.
        train: labelled training images that lie elsewhere.
        out: where records and page go; by default the run's folder, or measured/MODEL for networks of others.
        weights: of networks of others, see `open_pretrained`.
        random: whether a network of random weights is measured beside it where that is not the rule anyway.
        references: False measures the network alone.
        settings: `key=value` of the groups evaluation and runtime, and seed.

    Raises:
        UserError: no such measurement, network, images or setting, or a folder of another network.
    """
    config = _settings(model, settings)
    run = run_of(model)
    data = images_of(model) if data is None else data
    chosen = [find_measurement(name) for name in dict.fromkeys(names or _routine(data))]
    fabric = make_fabric(config.runtime)
    folder = out or run or Path("measured") / _file_name(model)
    _refuse_other_files(folder)
    new = not folder.exists()
    changed = [setting for setting in settings if setting.startswith("evaluation.")]
    with locked(folder):
        fabric.launch()
        study = study_of(model, data, config, folder, fabric.device, weights)
        if any(setting.startswith("evaluation.crop=") for setting in changed):
            study.encoder.pretrained_cfg = {**study.encoder.pretrained_cfg, "crop_pct": config.evaluation.crop}
        if folder != run:
            _describe(folder, model, study.scope.subject, config)
        elif not names and is_main_process():
            note_training(config, folder)
        details = {"settings": " ".join(changed)} if changed else {}
        try:
            alone = [replace(measurement, references=()) for measurement in chosen]
            _measure(
                study,
                chosen if references else alone,
                data,
                train,
                random,
                details | ({"train": train} if train else {}),
            )
        except UserError:
            if new and is_main_process() and not (folder / "records.jsonl").exists():
                shutil.rmtree(folder)  # nothing came of it
            raise
        page = folder / "report.html"
        return write_report([folder], page) if is_main_process() else page


def _routine(data: str) -> list[str]:
    try:
        labelled_splits(data)
        return [*_PROBES, *ROUTINE]
    except UserError as error:
        logger.info("no kNN and no linear probe: %s", error)
        return [*ROUTINE]


def study_of(
    model: str, data: str, config: Config, folder: Path, device: torch.device, weights: Weights = "auto"
) -> Study:
    """The study of a network, see `evaluate`; its records call it "random" where its weights are, else "backbone".

    Raises:
        UserError: there is no such network.
    """
    encoder, subject, checkpoint = open_network(model, weights, config.seed)
    scope = Scope(subject, data, config.seed, checkpoint)
    return Study(encoder, scope, config.evaluation, folder, device, config.runtime.workers, progress_bar)


def is_measured(folder: Path, data: str) -> bool:
    """Whether the folder holds the records and the page of its last checkpoint on `data`."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    records = folder / "records.jsonl"
    if checkpoint is None or not records.exists() or not (folder / "report.html").exists():
        return False
    # the first and the last of what is always measured; an older version measured no place
    needed = {("equivariance", "place"), ("explorer", "picture")}
    measured = {
        (r.evaluation, r.metric) for r in read_records(records) if (r.checkpoint, r.data) == (checkpoint.identity, data)
    }
    return needed <= measured


def _measure(
    study: Study,
    measurements: Sequence[Measurement],
    data: str,
    train: str | None,
    random: bool = False,
    details: Mapping[str, str] | None = None,
) -> None:
    """Each measurement of the network and its references; what is done is written before the next one starts."""
    file = study.folder / "records.jsonl"
    if file.exists():
        read_records(file)  # a file that cannot be added to is an error before hours of work
    for measurement in measurements:
        records: list[Record] = []
        for about in _subjects(study, measurement, random):
            logger.info("%s, %s", measurement.name, about.scope.subject)
            new = measurement.run(about, data, train)
            records += [replace(r, details={**r.details, **(details or {})}) for r in new]
        if records and is_main_process():
            study.folder.mkdir(parents=True, exist_ok=True)
            write_records(file, records)


def _subjects(study: Study, measurement: Measurement, random: bool) -> Iterator[Study]:
    yield study
    references = [*measurement.references, *([Subject.RANDOM] if random else [])]
    if Subject.RANDOM in references and study.scope.subject != Subject.RANDOM:
        untrained = study.random_baseline()
        if untrained is not None:
            yield untrained
    if Subject.PATCH_COLOURS in references:
        yield study.about(PatchColours(study.encoder), Subject.PATCH_COLOURS)
    if Subject.PIXELS in references:
        yield study.about(Pixels(study.preprocessing.crop), Subject.PIXELS)


def _settings(model: str, settings: Sequence[str]) -> Config:
    """The run's settings, or the defaults, with those of how it is measured changed."""
    free = ("evaluation.", "runtime.", "seed=")
    for setting in settings:
        if not setting.startswith(free) or setting.startswith("evaluation.network="):
            raise UserError(
                f"{setting!r} does not say how a finished network is measured; settings of the groups evaluation and "
                "runtime do, and seed"
            )
    run = run_of(model)
    config = load_config(run / "config.yaml") if run else Config(seed=first_seed(Path(model)))
    # where it was trained does not bind where it is measured
    return override(replace(config, runtime=replace(config.runtime, devices=1, accelerator="auto")), settings)


def _refuse_other_files(folder: Path) -> None:
    """Records and page do not go among a user's images, or into the inside of a run."""
    entries = {entry.name for entry in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    if entries and not entries & {"config.yaml", "model.yaml", "records.jsonl"}:
        raise UserError(f"{folder} holds other files; choose a new or an empty folder as --out")


def _describe(folder: Path, model: str, subject: str, config: Config) -> None:
    """What the folder is about, for the page; a folder is of one network."""
    file = folder / "model.yaml"
    if (folder / "config.yaml").exists():
        raise UserError(f"{folder} is a run's folder, and {model} is not its network; choose another --out")
    weights = "random" if subject == Subject.RANDOM else "pretrained" if ":" in model else "trained"
    content = {"model": model, "weights": weights, "seed": config.seed}
    if file.exists():
        before = yaml.safe_load(file.read_text()) or {}
        # of random weights the seed is a part
        networks = [f"{d.get('model')} ({d.get('weights')} weights, seed {d.get('seed')})" for d in (before, content)]
        if (before.get("model"), before.get("weights")) != (model, weights) or (
            subject == Subject.RANDOM and before.get("seed") != config.seed
        ):
            raise UserError(
                f"{folder} holds measurements of {networks[0]}, and this is {networks[1]}; choose another --out"
            )
    if is_main_process():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, yaml.safe_dump(content, sort_keys=False))


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.@" else "-" for c in text)
