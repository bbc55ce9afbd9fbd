"""The training loop. A step is a function of the checkpoint's content and its number: a run that was killed ends with
the same bits, on the same number of devices."""

import csv
import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from equimid.data import leave_signals_to_the_main_process
from equimid.distributed import any_rank, barrier, gather_detached, mean_detached, sum_detached
from equimid.engine.checkpoint import discard_checkpoint, latest_checkpoint, save_checkpoint
from equimid.engine.config import RuntimeConfig, TrainConfig
from equimid.engine.health import HealthCheck, effective_rank, feature_std
from equimid.engine.metrics import Metrics, ProgressLine
from equimid.engine.optimizer import OptimConfig, build_optimizer, clip_gradients, set_rates
from equimid.engine.order import MicroBatches
from equimid.engine.signals import StopRequest
from equimid.errors import UserError
from equimid.randomness import counted_torch_seed
from equimid.schedules import When
from equimid.task import Losses, Task
from equimid.views import Batch, ViewDataset, collate, realise, sample_poses

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Outcome", "Trainer"]

logger = logging.getLogger("equimid")


@dataclass(frozen=True)
class Outcome:
    """How training ended: steps done, steps wanted, and the signal that stopped it, if one did."""

    steps: int
    total: int
    stopped_by: int | None


class Trainer:
    """Trains `task` from its last checkpoint in `folder`, or from the start.

    Args:
        run: stored in every checkpoint; a checkpoint with another `run` is refused.

    Raises:
        UserError: here and in `fit`: the data changed, a loss is not finite, the disk is full.
    """

    def __init__(
        self,
        fabric: "Fabric",
        task: Task,
        dataset: ViewDataset,
        *,
        train: TrainConfig,
        optim: OptimConfig,
        runtime: RuntimeConfig,
        seed: int,
        folder: Path,
        run: dict[str, Any],
    ) -> None:
        self.fabric, self.task, self.dataset, self.plan = fabric, task, dataset, dataset.plan
        self.train, self.optim, self.runtime, self.seed = train, optim, runtime, seed
        self.folder, self.run = folder, run
        self.steps_per_epoch = train.steps_per_epoch(len(dataset))
        self.total = train.total_steps(len(dataset))
        # the optimizer holds the parameters that it was built with: the task goes to the device first
        task.to(fabric.device)
        optimizer = build_optimizer(task, optim)
        self.start = self._resume(optimizer)
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; the new name is not in the oldest torch that we take
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            self.module, self.optimizer = fabric.setup(task, optimizer)
        self.speaks = fabric.global_rank == 0
        weights = {name: config.weight if config.trains else 0.0 for name, config in task.configs.items()}
        self.health = HealthCheck(weights, patience=max(50, self.total // 10))
        self.saved = self.before = self.start
        self.unreadable: set[int] = set()

    def fit(self) -> Outcome:
        """All remaining steps; a signal finishes the step, writes a checkpoint and ends it earlier."""
        with StopRequest() as request:
            return self._fit(request)

    def _fit(self, request: StopRequest) -> Outcome:
        metrics = Metrics(self.folder, self.start, self.runtime.tensorboard) if self.speaks else None
        batches = iter(self._loader()) if self.start < self.total else iter(())
        step, began = self.start, time.monotonic() - (metrics.seconds if metrics else 0.0)
        try:
            with ProgressLine(self.total, self.start, shown=self.speaks) as progress:
                while step < self.total:
                    step_began = time.monotonic()
                    losses = self._step(step, batches)
                    row = self._row(step, losses, time.monotonic() - began, time.monotonic() - step_began)
                    if row is not None and metrics is not None:
                        metrics.write(row)
                    step += 1
                    shown = {name: float(value) for name, value in losses.named.items()} if self.speaks else {}
                    progress.advance(shown, self.train.batch_size / (time.monotonic() - step_began))
                    stop = any_rank(request.signal is not None, self.fabric.device)
                    if (
                        stop
                        or step == self.total
                        or step % (self.runtime.checkpoint_every or self.steps_per_epoch) == 0
                    ):
                        self._save(step)
                    if stop:
                        break
        finally:
            if metrics is not None:
                metrics.close()
        if self.unreadable:
            file = self.folder / "unreadable.csv"
            logger.warning("%d images could not be read in training and were replaced: %s", len(self.unreadable), file)
        return Outcome(step, self.total, request.signal if step < self.total else None)

    def _step(self, step: int, batches: Iterator[Batch]) -> Losses:
        """One step of the optimizer: EMA, forward and backward of every micro-batch, update."""
        when = When(step, self.total, self.steps_per_epoch)
        set_rates(self.optimizer, self.optim, when, self.train.batch_size)
        if not self.task.method.ema_last:
            self.task.follow(when)
        parts = []
        for micro in range(self.train.accumulate):
            batch = next(batches)
            self._list_unreadable(batch.unreadable)
            views = realise(batch, self.plan, self._poses(step, micro), self.fabric.device)
            last = micro == self.train.accumulate - 1
            with (
                counted_torch_seed(self.seed, "dropout", step, micro, self.fabric.global_rank),
                self.fabric.no_backward_sync(self.module, enabled=not last),
            ):
                part = self.module(views, when)
                self.fabric.backward(part.total / self.train.accumulate)
            parts.append(part)
        if step == self.start:
            self._refuse_unused()
        losses = _mean_losses(parts)
        self._refuse_infinite(step, losses)
        for parameter in self.task.method.frozen_at(when):
            parameter.grad = None
        clip_gradients(self.task.parameters(), self.optim)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.task.method.ema_last:
            self.task.follow(when)
        return losses

    def _refuse_unused(self) -> None:
        """Otherwise several processes stop with torch's numbers of parameters, and one goes on in silence."""
        unused = [name for name, p in self.task.named_parameters() if p.requires_grad and p.grad is None]
        if unused:
            raise UserError(
                f"no loss has a gradient for {', '.join(unused[:3])}{' and others' if len(unused) > 3 else ''}: every "
                "parameter of a method or an add-on must take part in its loss"
            )

    def _poses(self, step: int, micro: int) -> list[Any]:
        counter = step * self.train.accumulate + micro
        return sample_poses(self.plan, self.seed, counter, self.fabric.global_rank, self.fabric.world_size)

    def _list_unreadable(self, indices: tuple[int, ...]) -> None:
        """Add what went bad after the images were checked to the run's list."""
        new = [index for index in dict.fromkeys(indices) if index not in self.unreadable]
        if not new:
            return
        self.unreadable.update(new)
        with (self.folder / "unreadable.csv").open("a", newline="") as stream:
            csv.writer(stream).writerows([self.dataset.source.describe(index), "found in training"] for index in new)

    def _refuse_infinite(self, step: int, losses: Losses) -> None:
        values = {name: float(value) for name, value in {**losses.named, "total": losses.total.detach()}.items()}
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if any_rank(bool(bad), self.fabric.device):
            which = (
                ", ".join(f"{name} is {value}" for name, value in bad.items()) or "a loss of another rank is not finite"
            )
            kept = self._last_good(step)
            raise UserError(
                f"training stopped at step {step + 1} because a loss is not finite ({which}); {kept}. "
                "Try a lower optim.lr, a longer optim.warmup_epochs, or optim.clip=1 in a new run folder"
            )

    def _last_good(self, step: int) -> str:
        """Say which checkpoint is good; one whose weights gave no finite loss is removed."""
        good = self.saved
        if good == step and good > self.start:
            good = self.before
            if self.speaks:
                discard_checkpoint(self.folder / "checkpoints", step)
        return f"the checkpoint of step {good} is the last good one" if good else "no good checkpoint was saved yet"

    def _row(self, step: int, losses: Losses, seconds: float, step_seconds: float) -> dict[str, float | int] | None:
        if not (step < 10 or (step + 1) % self.runtime.log_every == 0 or step + 1 == self.total):
            return None
        named = {name: float(mean_detached(value)) for name, value in losses.named.items()}
        total = float(mean_detached(losses.total))
        gradients = self._gradients_at_the_tap()
        cls = gather_detached(losses.cls)
        if not self.speaks:
            return None
        std = feature_std(cls)
        self.health.look(step, std, gradients, len(cls))
        row: dict[str, float | int] = {
            "step": step + 1,
            "epoch": (step + 1) / self.steps_per_epoch,
            "seconds": seconds,
            "images_per_second": self.train.batch_size / step_seconds,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "momentum": self.task.method.momentum_at(When(step, self.total, self.steps_per_epoch)),
            "loss/total": total,
        }
        row |= {f"loss/{name}": value for name, value in named.items()}
        row |= {f"gradient/{name}": value for name, value in gradients.items()}
        return row | {"feature/std": std, "feature/effective_rank": effective_rank(cls)}

    def _gradients_at_the_tap(self) -> dict[str, float]:
        """Norms over all ranks of what reached the last tapped layer: of what reads the final embedding ("base", and
        add-ons that do), and of what reads that layer."""
        names = self.task.watched
        zero = torch.zeros((), device=self.fabric.device)
        squares = [sum_detached(self.task.watch.norms.get(key, zero) ** 2) for key in names.values()]
        # a rank's loss is W times its share, so the squares add up and the norm divides by W; the last of several
        # micro-batches was seen, with its part of the loss
        scale = self.train.accumulate / self.fabric.world_size
        return {name: math.sqrt(float(square)) * scale for name, square in zip(names, squares, strict=True)}

    def _loader(self) -> DataLoader[Any]:
        keys = MicroBatches(
            len(self.dataset),
            self.seed,
            micro_batch=self.train.micro_batch,
            accumulate=self.train.accumulate,
            first_step=self.start,
            last_step=self.total,
            plan=self.plan,
            rank=self.fabric.global_rank,
            ranks=self.fabric.world_size,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=keys,
            num_workers=self.runtime.workers,
            collate_fn=collate,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_main_process,
            prefetch_factor=4 if self.runtime.workers else None,
        )

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        checkpoint = latest_checkpoint(self.folder / "checkpoints")
        if checkpoint is None:
            return 0
        if checkpoint.run != self.run:
            counts = f"{checkpoint.run.get('images')} images then, {self.run.get('images')} now"
            raise UserError(
                f"{self.folder} cannot go on: it was trained on other data ({counts}); bring the files back, or choose "
                "a new --out folder"
            )
        checkpoint.restore(self.task, optimizer)
        if self.fabric.global_rank == 0:
            logger.info("going on after step %d of %d", checkpoint.step, self.total)
        return checkpoint.step

    def _save(self, step: int) -> None:
        """Rank 0 writes; if the disk refuses, every rank stops."""
        refused: UserError | None = None
        if not all(bool(p.isfinite().all()) for p in self.task.parameters()):
            raise UserError(f"training stopped after step {step}: weights are not finite; {self._last_good(-1)}")
        if self.speaks:
            try:
                folder = self.folder / "checkpoints"
                save_checkpoint(folder, step, self.task, self.optimizer, self.run, self.runtime.keep_checkpoints)
            except UserError as error:
                refused = error
        if any_rank(refused is not None, self.fabric.device):
            raise refused or UserError("rank 0 could not write a checkpoint")
        self.before, self.saved = self.saved, step
        barrier()


def _mean_losses(parts: list[Losses]) -> Losses:
    if len(parts) == 1:
        return parts[0]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack([v.detach() for v in values]).mean()

    named = {name: mean([part.named[name] for part in parts]) for name in parts[0].named}
    return Losses(mean([part.total for part in parts]), named, parts[-1].cls)
