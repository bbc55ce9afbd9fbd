"""Everything that is measured of a run: probes where there are labels, equivariance and pictures always."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from equimid.backbones import Backbone, build_backbone
from equimid.config import Config
from equimid.data import Source, check_images, open_source
from equimid.engine import is_main_process, latest_checkpoint
from equimid.errors import UserError
from equimid.evaluation import (
    FeatureTable,
    Scope,
    draw_feature_maps,
    embed,
    measure_equivariance,
    measure_knn,
    measure_linear,
    pixels,
)
from equimid.export import load_backbone
from equimid.records import Record, read_records, write_records
from equimid.report import write_report

__all__ = ["is_measured", "measure_run", "progress_bar"]

logger = logging.getLogger("equimid")


def measure_run(config: Config, folder: Path, data: str, device: torch.device) -> Path:
    """Everything that can be measured of the folder's backbone on `data`; then the report."""
    backbone = load_backbone(folder)
    taps = sorted({layer for addon in config.addons.values() for layer in addon.taps})
    random = build_backbone(config.backbone, taps, config.seed)
    random.pretrained_cfg = backbone.pretrained_cfg
    scope = Scope("backbone", data, config.seed, backbone.checkpoint)
    subjects: list[tuple[Scope, Backbone]] = [
        (scope, backbone),
        (replace(scope, subject="random", checkpoint=""), random),
    ]
    workers = config.runtime.workers
    records = [_view_setting(config, scope)]
    labelled = _labelled_splits(data)
    if labelled:
        for about, network in subjects:
            with progress_bar(f"features, {about.subject}") as progress:
                tables = [embed(network, s, device=device, workers=workers, progress=progress) for s in labelled]
            records += _probe(tables, config, about)
        with progress_bar("features, pixels") as progress:
            tables = [pixels(s, workers=workers, progress=progress) for s in labelled]
        records += _probe(tables, config, replace(scope, subject="pixels", checkpoint=""))
        images = labelled[1]
    else:
        logger.info("%s has no labels to probe with: no kNN and no linear probe", data)
        images = _readable(open_source(data))
    if len(images) >= 2:
        for about, network in subjects:
            with progress_bar(f"equivariance, {about.subject}") as progress:
                records += measure_equivariance(
                    network,
                    images,
                    config.evaluation,
                    about,
                    device=device,
                    workers=workers,
                    progress=progress,
                )
    depth = len(backbone.blocks)
    layers = sorted({1, *(taps or (max(1, depth // 4),)), depth // 2, depth} - {0})
    records += draw_feature_maps(backbone, images, layers, folder, scope, device=device)
    write_records(folder / "records.jsonl", records)
    return write_report([folder], folder / "report.html")


def is_measured(folder: Path, data: str) -> bool:
    """Whether the folder holds the records and the page of its last checkpoint on `data`."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    records = folder / "records.jsonl"
    if checkpoint is None or not records.exists() or not (folder / "report.html").exists():
        return False
    return any((r.checkpoint, r.data) == (checkpoint.identity, data) for r in read_records(records))


def _view_setting(config: Config, scope: Scope) -> Record:
    """How many views of an image it was trained on: runs with other numbers of views are no fair comparison."""
    plan = config.plan()
    count = len(plan.crops) + sum(extra.turns for extra in plan.extra.values())
    return Record(
        "training", "views", count, config.train.batch_size, scope.subject, scope.data, scope.seed, scope.checkpoint,
        details={"setting": plan.label},
    )  # fmt: skip


def _probe(tables: list[FeatureTable], config: Config, scope: Scope) -> list[Record]:
    fit, test = tables
    records = measure_knn(fit, test, config.evaluation, scope)
    try:
        return records + measure_linear(fit, test, config.evaluation, scope)
    except UserError as error:
        logger.warning("no linear probe: %s", error)
        return records


def _labelled_splits(data: str) -> list[Source]:
    """Training and test images, or nothing where there are no labels."""
    open_source(data)  # what cannot be opened at all is an error
    try:
        splits = [open_source(data, split) for split in ("train", "test")]
    except UserError as error:
        logger.warning("no training and test images in %s: %s", data, error)
        return []
    return [_readable(s) for s in splits] if all(s.labels is not None for s in splits) else []


def _readable(source: Source) -> Source:
    return check_images(source, smallest_side=1, tolerated=1.0).apply(source)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not (is_main_process() and console.is_terminal):
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
