"""A run and its folder: pretrain, export, measure; resumed where it stopped."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equimid.backbones import (
    Backbone,
    InitialWeights,
    build_backbone,
    embedding_moved,
    load_initial_weights,
    refuse_pretrained,
    timm_arguments,
)
from equimid.config import Config, differences, load_config, save_config
from equimid.console import is_main_process, progress_bar
from equimid.data import ImageCheck, Source, check_images, open_source
from equimid.distributed import barrier, leave_group
from equimid.engine import (
    Callback,
    Outcome,
    OutOfMemory,
    Trainer,
    epoch_order,
    host_memory,
    is_sharded,
    keep_freed_memory,
    keep_kernels,
    latest_checkpoint,
    make_fabric,
    ranks_end_together,
    set_threads,
    settle_precision,
    started,
    whole_state,
)
from equimid.errors import UserError
from equimid.evaluation.preprocessing import Preprocessing, image_batches
from equimid.export import save_backbone
from equimid.files import locked
from equimid.runs.evaluate import is_measured, measure_run
from equimid.runs.facts import note, note_start
from equimid.runs.flops import step_memory
from equimid.task import Task
from equimid.views import ViewDataset

__all__ = ["on_one_device", "pretrain"]

logger = logging.getLogger("equimid")

# in a run's folder before its images are looked at
_NOTES = {".lock", "precision.json"}


def pretrain(config: Config, folder: Path, *, finish: bool = True, callbacks: Sequence[Callback] = ()) -> Outcome:
    """Train into `folder`, from where an earlier call stopped; then export, evaluate and report.

    Args:
        finish: False leaves out evaluation and report.
        callbacks: called on the main process while it trains, see `equimid.engine.callbacks`.

    Raises:
        UserError: bad settings or data, a folder of another run, a folder in use, a full disk.
    """
    with _begun(folder), ranks_end_together():
        keep_kernels()
        plan = config.plan()
        begins = latest_checkpoint(folder / "checkpoints") is None
        if begins:
            refuse_pretrained(config.backbone.name)
        task = Task(config.backbone, config.method, config.addons, plan, config.seed)
        _measured_network(task, config)  # a wrong choice is refused before training, not after it
        initial = _load_initial(task, config.backbone.init_from) if begins and config.backbone.init_from else None
        launched = started(config.runtime)
        runtime = settle_precision(config.runtime, task.student.embed_dim, folder, launched.alone)
        fabric = make_fabric(runtime)
        if fabric.device.type == "cpu":
            keep_freed_memory()
        config.train.check_ranks(fabric.world_size, plan.unit)
        prepared = _prepare(config, folder, task.patch_size) if is_main_process() else None
        fabric.launch()
        set_threads(runtime.threads, fabric.world_size // launched.nodes)
        barrier()
        # the main process has checked the images before the others start: they read its list
        source, remeasure = prepared or (
            _source(config, folder, open_source(config.data.source), task.patch_size),
            False,
        )
        if initial is not None and is_main_process():
            _say_initial(initial, task, config, folder, source)
        trainer = Trainer(
            fabric,
            task,
            ViewDataset(source, plan, config.seed, config.runtime.decode),
            train=config.train,
            optim=config.optim,
            runtime=runtime,
            seed=config.seed,
            folder=folder,
            run={"images": len(source), "data": source.fingerprint()},
            tolerated_unreadable=config.data.tolerated_unreadable,
            order=epoch_order(source, config.data, config.seed),
            callbacks=callbacks,
        )
        try:
            outcome = trainer.fit()
        except OutOfMemory as error:
            bf16 = "bf16" in str(fabric._precision.precision)
            raise _too_large(config, fabric.device, fabric.world_size, bf16) from error
        rank = fabric.global_rank
        network = _whole(_measured_network(task, config), config)
        if finish:
            leave_group()  # the main process measures alone
        if rank == 0:
            _export(network, config, folder)
            finished = finish and outcome.stopped_by is None
            if finished and (remeasure or not is_measured(folder, config.data.source)):
                measure_run(config, folder, config.data.source, fabric.device)
    return outcome


def _load_initial(task: Task, source: str) -> InitialWeights:
    """Load weights into the student and the momentum network."""
    initial = load_initial_weights(task.student, source)
    if task.momentum is not None:
        task.momentum.load_state_dict(task.student.state_dict())
    return initial


def _say_initial(initial: InitialWeights, task: Task, config: Config, folder: Path, source: Source) -> None:
    """What became of every tensor of the initial weights; kept in run.json."""
    backbone, views = config.backbone, config.views
    logger.info("%s; backbone.init is not used", initial)
    if backbone.positions == "sincos":
        logger.info("the loaded positions are not trained; backbone.positions=learned trains them")
    if initial.mean and initial.std and (initial.mean, initial.std) != (tuple(views.mean), tuple(views.std)):
        logger.warning(
            "the loaded weights are of images of mean %s and deviation %s, this run gives %s and %s; set views.mean "
            "and views.std", list(initial.mean), list(initial.std), list(views.mean), list(views.std),
        )  # fmt: skip
    facts: dict[str, Any] = asdict(initial)
    if backbone.cls_layer != initial.cls_layer:
        preprocessing = Preprocessing(backbone.image_size, 1.0, views.mean, views.std)
        images = next(image_batches(source, preprocessing, batch_size=32, indices=np.arange(min(32, len(source)))))
        facts["embedding_cosine"] = embedding_moved(task.student, images)
        logger.info(
            "CLS enters after block %d: the final embedding of %d images has a mean cosine of %.2f with that of the "
            "loaded network", backbone.cls_layer, len(images), facts["embedding_cosine"],
        )  # fmt: skip
    note(folder, initial_weights=facts)


@contextmanager
def _begun(folder: Path) -> Iterator[None]:
    """The folder made and locked; where it was new and nothing but notes got into it, a refusal leaves none behind."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with locked(folder):
            yield
    except UserError:
        if made and folder.is_dir() and is_main_process() and {file.name for file in folder.iterdir()} <= _NOTES:
            for name in _NOTES:
                (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # one above it that is in use by now
                for place in made:
                    place.rmdir()
        raise


def on_one_device(config: Config) -> Config:
    """The same for one of several trainings in one process: `auto` becomes one device.

    Raises:
        UserError: it asks for several processes, which are launched once for each program.
    """
    one = replace(config, runtime=replace(config.runtime, devices=1)) if config.runtime.devices == "auto" else config
    if make_fabric(one.runtime).world_size > 1:
        raise UserError(
            "several trainings one after another take one device each, and this asks for more; leave runtime.devices "
            "out, or run each with equimid pretrain"
        )
    return one


def _prepare(config: Config, folder: Path, patch_size: int) -> tuple[Source, bool]:
    """Main process, before the ranks start: settings and data agree with the folder, images are checked and suffice.

    Settings bind from the first checkpoint on: until then a run that was refused, or too large, goes on with others.

    Returns:
        The images, and whether the run was measured with other evaluation settings before.
    """
    file = folder / "config.yaml"
    before = load_config(file) if file.exists() else config
    differing = differences(before, config)
    if differing and latest_checkpoint(folder / "checkpoints") is not None:
        changes = "; ".join(f"{key} was {old} and is now {new}" for key, (old, new) in differing.items())
        raise UserError(f"{folder} holds a run with other settings ({changes}); choose another --out or those settings")
    listed = open_source(config.data.source)
    _refuse_other_data(config, folder, listed)
    source = _source(config, folder, listed, patch_size, changes=True)
    train, steps_per_epoch = config.train, config.train.steps_per_epoch(len(source))
    logger.info(config.optim.describe_schedule(train.total_steps(len(source)), steps_per_epoch, train.batch_size))
    epoch_order(source, config.data, config.seed)  # refused before the settings bind
    if differing:
        # nothing was kept of the training with those: its rows are no part of this one
        (folder / "metrics.csv").unlink(missing_ok=True)
    remeasure = before.evaluation != config.evaluation
    if remeasure:
        # without its page a run counts as not measured, should this be killed before it is
        (folder / "report.html").unlink(missing_ok=True)
    save_config(config, file)
    note_start(folder)
    return source, remeasure


def _refuse_other_data(config: Config, folder: Path, listed: Source) -> None:
    """Before the folder's list of images is written anew: a run is resumed with the images it began with."""
    check = ImageCheck.load(folder)
    if check is None or latest_checkpoint(folder / "checkpoints") is None:
        return
    if listed.fingerprint() != check.fingerprint:
        raise UserError(
            f"{folder} cannot be resumed: it was trained on other data ({check.listed} images then, {len(listed)} now "
            f"in {config.data.source}, or files changed); bring the files back, or choose another --out"
        )


def _source(config: Config, folder: Path, listed: Source, patch_size: int, changes: bool = False) -> Source:
    """Those of the listed images that can be used; the check is saved in the folder and made once."""
    with progress_bar("checking images") as progress:
        check = check_images(
            listed,
            folder,
            smallest_side=patch_size,
            tolerated=config.data.tolerated_unreadable,
            progress=progress,
        )
    source = check.apply(listed)
    if changes:
        left_out = f", {len(check.unreadable)} left out ({folder / 'unreadable.csv'})" if check.unreadable else ""
        logger.info("%s: %d images%s", config.data.source, len(source), left_out)
    return source


def _too_large(config: Config, device: torch.device, ranks: int, bf16: bool) -> UserError:
    train, needed = config.train, step_memory(config, ranks, bf16)
    images = train.micro_batch // ranks
    more = range(2 * train.accumulate, train.batch_size // 2 + 1)
    parts = next((n for n in more if train.batch_size % (n * ranks * config.plan().unit) == 0), train.batch_size // 2)
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else host_memory()
    has = f"; the device has {memory / 2**30:.1f} GiB" if memory else ""
    recompute = (
        "backbone.name to a smaller network (activations are recomputed already)"
        if config.runtime.checkpoint_activations
        else "runtime.checkpoint_activations=true (recomputes them, a third more work)"
    )
    return UserError(
        f"out of memory: a step of {images} images a process (train.batch_size={train.batch_size}) needs an estimated "
        f"{needed.activations / 2**30:.1f} GiB of activations beside {needed.weights / 2**30:.1f} GiB of weights, "
        f"gradients and optimizer{has}. Change one of: train.accumulate={parts} (fewer images at once, each "
        f"contrasted with those alone), {recompute}, or train.batch_size={max(2, train.batch_size // 2)} (a new run)"
    )


def _preprocessing(config: Config) -> dict[str, Any]:
    size = config.backbone.image_size
    return {
        "input_size": [3, size, size],
        "mean": list(config.views.mean),
        "std": list(config.views.std),
        "interpolation": "bicubic",
        "crop_pct": config.evaluation.crop,
    }


def _measured_network(task: Task, config: Config) -> Backbone:
    if config.evaluation.network == "student":
        return task.student
    if not isinstance(task.momentum, Backbone):
        raise UserError(
            f"evaluation.network is momentum, but {config.method.name} has no momentum network; use student"
        )
    return task.momentum


def _whole(network: Backbone, config: Config) -> Backbone:
    """The network with all of its weights, whatever part of them this process held; on every rank."""
    if not is_sharded(network):
        return network
    whole = build_backbone(config.backbone, list(network.taps), seed=config.seed)
    whole.load_state_dict(whole_state(network))
    return whole


def _export(network: Backbone, config: Config, folder: Path) -> None:
    checkpoint = latest_checkpoint(folder / "checkpoints")
    save_backbone(
        network,
        folder / "backbone",
        config.backbone.name,
        timm_arguments(config.backbone),
        _preprocessing(config),
        checkpoint.identity if checkpoint else "",
        config.evaluation.network,
        {"seed": config.seed, "backbone": asdict(config.backbone)},
    )
