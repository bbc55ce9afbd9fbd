"""The training loop. A step is a function of the checkpoint's content and of its number, so a run that is killed and
resumed ends with the same bits, on the same number of devices."""

import csv
import logging
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from equimid.backbones import compile_blocks
from equimid.data import leave_signals_to_the_main_process
from equimid.distributed import any_rank, barrier, gather_detached
from equimid.engine.async_metrics import AsyncMetrics, LoaderClock
from equimid.engine.callbacks import Callback, CsvLog, Outcome, ProgressLine, TensorBoardLog
from equimid.engine.checkpoint import agreed_checkpoint, discard_checkpoint, save_checkpoint
from equimid.engine.config import OptimConfig, RuntimeConfig, TrainConfig
from equimid.engine.health import HealthCheck, effective_rank, feature_std, map_variance
from equimid.engine.launch import StopRequest
from equimid.engine.machine import OutOfMemory, give_back_freed_memory, is_out_of_memory, loader_remedy
from equimid.engine.optimizer import build_optimizer, clip_gradients, set_rates
from equimid.engine.sampler import EpochOrder, MicroBatches
from equimid.engine.sharding import is_sharded, own_part
from equimid.errors import UserError
from equimid.randomness import counted_torch_seed
from equimid.schedules import StepInfo
from equimid.task import Losses, Task
from equimid.views import Batch, ViewDataset, collate, decode_encoded, sample_poses, to_device_views

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Outcome", "Trainer"]

logger = logging.getLogger("equimid")


class Trainer:
    """Trains `task` from its last checkpoint in `folder`, or from the start.

    Args:
        fabric: launched.
        seed: of the order of images, of poses and of dropout.
        folder: of the run.
        run: stored in every checkpoint; a checkpoint with another `run` is refused.
        tolerated_unreadable: fraction of the images that may go bad in training, 0..1.
        order: of the images of an epoch; by default a permutation of all.
        callbacks: called after those of the run itself, see `equimid.engine.callbacks`.

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
        tolerated_unreadable: float = 1.0,
        order: EpochOrder | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.fabric, self.task, self.dataset, self.plan = fabric, task, dataset, dataset.plan
        self.train, self.optim, self.runtime, self.seed = train, optim, runtime, seed
        self.folder, self.run, self.order = folder, run, order
        self.steps_per_epoch = train.steps_per_epoch(len(dataset))
        self.total = train.total_steps(len(dataset))
        task.student.set_grad_checkpointing(runtime.checkpoint_activations)
        # the optimizer holds the parameters that it was built with: first the task goes to the device, or is shared out
        with warnings.catch_warnings():
            # torch 2.15 renames broadcast_buffers; the new name is not in the oldest torch that we take
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            if runtime.strategy == "fsdp" and fabric.world_size > 1:
                self.module = fabric.setup_module(task)  # moves each part as it shares it out
                optimizer = build_optimizer(task, optim)
                self.start = self._resume(optimizer)
                self.optimizer = fabric.setup_optimizers(optimizer)
            else:
                task.to(fabric.device)
                optimizer = build_optimizer(task, optim)
                self.start = self._resume(optimizer)
                self.module, self.optimizer = fabric.setup(task, optimizer)
        if runtime.compile:
            compile_blocks(task)
        self.is_main = fabric.global_rank == 0
        weights = {name: config.weight if config.trains else 0.0 for name, config in task.configs.items()}
        remedy = loader_remedy(fabric.device, runtime.workers, runtime.decode == "device")
        self.csv = CsvLog(folder, self.start) if self.is_main else None
        self.callbacks: list[Callback] = []
        if self.csv is not None:
            boards = [TensorBoardLog(folder, self.start)] if runtime.tensorboard else []
            health = HealthCheck(weights, max(50, self.total // 10), self.start, remedy)
            self.callbacks = [health, self.csv, *boards, ProgressLine(), *callbacks]
        self.saved = self.before = self.start
        self.tolerated_unreadable, self.unreadable = tolerated_unreadable, set[int]()
        self.counted = 0, 0  # unreadable images: the sum of the ranks' numbers, and how many different ones they are
        self.clock = LoaderClock(fabric.device)
        # on a GPU the host reads a step's numbers while the device is at the next
        self.behind = 1 if fabric.device.type == "cuda" else 0

    def fit(self) -> Outcome:
        """All remaining steps; a signal finishes the step, writes a checkpoint and ends it earlier.

        Raises:
            OutOfMemory: a step does not fit.
        """
        with StopRequest() as request:
            try:
                return self._fit(request)
            except (RuntimeError, MemoryError) as error:
                if is_out_of_memory(error):
                    raise OutOfMemory(str(error).splitlines()[0]) from error
                if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                    reason = str(error).strip().splitlines()[0]
                    raise UserError(f"runtime.compile failed: {reason}; leave it out, or mend that") from error
                raise

    def _fit(self, request: StopRequest) -> Outcome:
        batches = self._batches()
        step, outcome = self.start, None
        self.began = time.monotonic() - (self.csv.seconds if self.csv else 0.0)
        self.last_read, stop = time.monotonic(), False
        waiting: deque[AsyncMetrics] = deque()
        for callback in self.callbacks:
            callback.on_start(step, self.total)
        try:
            while step < self.total and not stop:
                waiting.append(self._step(step, batches, request))
                step += 1
                stop = self._read(waiting, self.behind)
                due = step == self.total or step % (self.runtime.checkpoint_every or self.steps_per_epoch) == 0
                if stop or due:
                    stop |= self._read(waiting, 0)
                    self._save(step)
            # a signal that only another rank got stops this one too
            stopped_by = request.signal or (signal.SIGTERM if stop else None)
            outcome = Outcome(step, self.total, stopped_by if step < self.total else None)
        finally:
            batches.close()
            for callback in self.callbacks:
                callback.on_end(outcome)
        if self.unreadable:
            file = self.folder / "unreadable.csv"
            logger.warning("%d images could not be read in training and were replaced: %s", len(self.unreadable), file)
        return outcome

    def _step(self, step: int, batches: Iterator[Batch], request: StopRequest) -> AsyncMetrics:
        """One step of the optimizer: EMA, forward and backward of every micro-batch, update. Nothing in it waits for
        the device."""
        when = StepInfo(step, self.total, self.steps_per_epoch)
        set_rates(self.optimizer, self.optim, when, self.train.batch_size)
        if not self.task.method.ema_last:
            self.task.update_teacher(when)
        parts = []
        for micro in range(self.train.accumulate):
            batch = decode_encoded(self.clock.take(batches), self.dataset, self.fabric.device)
            self._list_unreadable(batch.unreadable)
            views = to_device_views(batch, self.plan, self._poses(step, micro), self.fabric.device)
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
        for parameter in self.task.method.frozen_at(when):
            parameter.grad = None
        clip_gradients(self.task.parameters(), self.optim)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.task.method.ema_last:
            self.task.update_teacher(when)
        return self._metrics(step, _mean_losses(parts), request)

    def _metrics(self, step: int, losses: Losses, request: StopRequest) -> AsyncMetrics:
        """The numbers of this step, on their way to the host."""
        device = self.fabric.device
        numbers = {f"loss/{name}": value for name, value in losses.named.items()} | {"loss/total": losses.total}
        zero = torch.zeros((), device=device)
        for name, key in self.task.watched.items():
            numbers[f"gradient/{name}"] = self.task.watch.norms.get(key, zero) ** 2
        for name, count in (("stop", request.signal is not None), ("unreadable", len(self.unreadable))):
            numbers[name] = zero + count
        if self._is_logged(step):
            for layer, maps in losses.maps.items():
                numbers[f"between/{layer}"], numbers[f"variance/{layer}"] = map_variance(maps)
        return AsyncMetrics(step, numbers, losses.cls if self._is_logged(step) else None)

    def _is_logged(self, step: int) -> bool:
        return step < 10 or (step + 1) % self.runtime.log_every == 0 or step + 1 == self.total

    def _read(self, waiting: deque[AsyncMetrics], behind: int) -> bool:
        """Read all but the newest `behind` steps; returns whether some rank is to stop."""
        stop = False
        while len(waiting) > behind:
            metrics = waiting.popleft()
            numbers, cls = metrics.read()
            now = time.monotonic()
            rate, self.last_read = self.train.batch_size / max(now - self.last_read, 1e-9), now
            stop |= numbers.pop("stop") > 0
            self._refuse_too_many_unreadable(int(numbers.pop("unreadable")))
            losses = {key: value / self.fabric.world_size for key, value in numbers.items() if key.startswith("loss/")}
            self._refuse_infinite(metrics.step, losses)
            if cls is not None:
                self._log(metrics.step, losses, numbers, cls, rate)
            for callback in self.callbacks:
                callback.on_step(metrics.step + 1, {k.removeprefix("loss/"): v for k, v in losses.items()}, rate)
        return stop

    def _log(self, step: int, losses: dict[str, float], sums: dict[str, float], cls: Tensor, rate: float) -> None:
        """The row of a logged step."""
        if not self.callbacks:
            return
        # a rank's loss is W times its fraction, so the squares add up and the norm divides by W; the gradient is that
        # of the last of several micro-batches, with its part of the loss
        scale = self.train.accumulate / self.fabric.world_size
        when = StepInfo(step, self.total, self.steps_per_epoch)
        row: dict[str, float | int] = {
            "step": step + 1,
            "epoch": (step + 1) / self.steps_per_epoch,
            "seconds": time.monotonic() - self.began,
            "images_per_second": rate,
            "waiting": self.clock.waited(),
            "lr": self.optim.lr_at(when, self.train.batch_size),
            "momentum": self.task.method.momentum_at(when),
            "loss/total": losses["loss/total"],
        }
        row |= losses
        row |= {key: math.sqrt(square) * scale for key, square in sums.items() if key.startswith("gradient/")}
        for layer in (key.removeprefix("between/") for key in sums if key.startswith("between/")):
            fraction = sums[f"between/{layer}"] / max(sums[f"variance/{layer}"], 1e-12)
            row[f"feature/between_images_{layer}"] = fraction
        row |= {"feature/std": feature_std(cls), "feature/effective_rank": effective_rank(cls)}
        for callback in self.callbacks:
            callback.on_log(step + 1, row, len(cls))

    def _refuse_unused(self) -> None:
        """Otherwise several processes stop with torch's numbers of parameters, and one continues in silence."""
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
        if not self.unreadable:
            logger.warning("%s could not be read and was replaced", self.dataset.source.describe(new[0]))
        self.unreadable.update(new)
        with (self.folder / "unreadable.csv").open("a", newline="") as stream:
            csv.writer(stream).writerows([self.dataset.source.describe(index), "found in training"] for index in new)

    def _refuse_too_many_unreadable(self, total: int) -> None:
        """Those of all ranks together; an image that several of them met, in other epochs, counts once."""
        if total != self.counted[0]:
            own = torch.tensor(sorted(self.unreadable), dtype=torch.int64, device=self.fabric.device)
            self.counted = total, len(gather_detached(own).unique())
        count = self.counted[1]
        if count > self.tolerated_unreadable * len(self.dataset):
            raise UserError(
                f"training stopped: {count} of {len(self.dataset)} images could not be read in training, more than "
                f"data.tolerated_unreadable={self.tolerated_unreadable:g} allows; they are listed in "
                f"{self.folder / 'unreadable.csv'}. Mend or bring back the files and run the same command again, or "
                "raise the limit"
            )

    def _refuse_infinite(self, step: int, losses: dict[str, float]) -> None:
        bad = [f"{key.removeprefix('loss/')} is {value}" for key, value in losses.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"training stopped at step {step + 1} because a loss is not finite ({', '.join(bad)}); "
                f"{self._last_good(step)}. "
                "Try a lower optim.lr, a longer optim.warmup_epochs, or optim.clip=1 in a new run folder"
            )

    def _last_good(self, step: int) -> str:
        """Say which checkpoint is good; one whose weights gave no finite loss is removed."""
        good = self.saved
        if good == step and good > self.start:
            good = self.before
            if self.is_main:
                discard_checkpoint(self.folder / "checkpoints", step)
        return f"the checkpoint of step {good} is the last good one" if good else "no good checkpoint was saved yet"

    def _batches(self) -> Generator[Batch]:
        """Yield this rank's micro-batches. Closing it ends the workers: they ignore signals, and a process that failed
        would wait for them."""
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
            order=self.order,
        )
        yield from DataLoader(
            self.dataset,
            batch_sampler=keys,
            num_workers=self.runtime.workers,
            collate_fn=collate,
            pin_memory=self.fabric.device.type == "cuda",
            worker_init_fn=leave_signals_to_the_main_process,
            prefetch_factor=4 if self.runtime.workers else None,
        )

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        checkpoint = agreed_checkpoint(self.folder / "checkpoints", self.fabric.device)
        if checkpoint is None:
            return 0
        if checkpoint.run != self.run:
            counts = f"{checkpoint.run.get('images')} images then, {self.run.get('images')} now"
            raise UserError(
                f"{self.folder} cannot be resumed: it was trained on other data ({counts}); bring the files back, or "
                "choose a new --out folder"
            )
        checkpoint.restore(self.task, optimizer)
        if self.fabric.global_rank == 0:
            logger.info("resuming after step %d of %d", checkpoint.step, self.total)
        return checkpoint.step

    def _save(self, step: int) -> None:
        """Rank 0 writes, or under FSDP every rank its part; if the disk refuses, every rank stops."""
        refused: UserError | None = None
        folder, keep = self.folder / "checkpoints", self.runtime.keep_checkpoints
        finite = all(bool(own_part(p).isfinite().all()) for p in self.task.parameters())
        if any_rank(not finite, self.fabric.device):
            raise UserError(f"training stopped after step {step}: weights are not finite; {self._last_good(-1)}")
        try:
            if self.is_main or is_sharded(self.task):
                save_checkpoint(folder, step, self.task, self.optimizer, self.run, keep, self.fabric.device)
        except UserError as error:
            refused = error
        if any_rank(refused is not None, self.fabric.device):
            raise refused or UserError("rank 0 could not write a checkpoint")
        self.before, self.saved = self.saved, step
        for callback in self.callbacks:
            callback.on_checkpoint(step, self.folder)
        if self.fabric.device.type == "cpu":
            give_back_freed_memory()
        barrier()


def _mean_losses(parts: list[Losses]) -> Losses:
    if len(parts) == 1:
        return parts[0]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack([v.detach() for v in values]).mean()

    named = {name: mean([part.named[name] for part in parts]) for name in parts[0].named}
    return Losses(mean([part.total for part in parts]), named, parts[-1].cls, parts[-1].maps)
