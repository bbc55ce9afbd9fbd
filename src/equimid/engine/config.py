"""Settings of training: how long and how fast, which change the result; and where it runs, which must not."""

import math
from typing import Annotated, Literal

from equimid.errors import UserError
from equimid.schedules import StepInfo, cosine, dino_warmup_cosine, warmup_cosine
from equimid.settings import setting, settings

__all__ = ["OptimConfig", "RuntimeConfig", "TrainConfig"]


@settings("train")
class TrainConfig:
    """How long a run trains, and on how many images at a time."""

    batch_size: Annotated[int, setting("images of a step, over all processes", unit="images", ge=1)] = 256
    epochs: Annotated[
        int, setting("passes over the images; the last, incomplete batch of an epoch is left out", unit="epochs", ge=1)
    ] = 100
    steps: Annotated[int, setting("stop after so many steps; 0 = after the epochs", unit="steps", ge=0)] = 0
    accumulate: Annotated[
        int, setting("micro-batches of a step; each one contrasts its own images only", unit="micro-batches", ge=1)
    ] = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size is {self.batch_size}, which train.accumulate {self.accumulate} does not divide"
            )
        if self.micro_batch < 2:
            raise ValueError(
                f"batch_size {self.batch_size} in {self.accumulate} micro-batch(es) leaves one image in each; "
                "images are contrasted with each other, so at least two are needed"
            )

    @property
    def micro_batch(self) -> int:
        """Images of a micro-batch over all ranks."""
        return self.batch_size // self.accumulate

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in the images.

        Raises:
            UserError: there is none.
        """
        if images < self.batch_size:
            raise UserError(
                f"train.batch_size is {self.batch_size}, but there are only {images} images; "
                f"set train.batch_size={images} or less"
            )
        return images // self.batch_size

    def check_unit(self, unit: int) -> None:
        """Images that belong together must fill a micro-batch.

        Raises:
            UserError: one is left over.
        """
        if self.micro_batch % unit:
            raise UserError(
                f"train.batch_size is {self.batch_size} in {self.accumulate} micro-batch(es), but views are shared by "
                f"{unit} images; make it a multiple of {unit * self.accumulate}"
            )

    def check_ranks(self, ranks: int, unit: int = 1) -> None:
        """Every rank must get as many images of a micro-batch.

        Args:
            unit: neighbouring images that stay on one rank.

        Raises:
            UserError: it does not divide.
        """
        if self.micro_batch % (ranks * unit):
            raise UserError(
                f"train.batch_size is {self.batch_size}, in {self.accumulate} micro-batch(es) it does not divide over "
                f"{ranks} processes{f', each with whole groups of {unit} images' if unit > 1 else ''}; "
                f"make it a multiple of {ranks * unit * self.accumulate}"
            )

    def total_steps(self, images: int) -> int:
        """Steps of the whole run."""
        return self.steps or self.epochs * self.steps_per_epoch(images)


@settings("optim")
class OptimConfig:
    """AdamW as moco-v3 uses it, unless set otherwise. Rates are per 256 images of the batch.

    "1-D parameters" are biases and whatever has at most one dimension (the affine part of a norm).
    """

    name: Annotated[
        Literal["adamw", "lars"], setting("lars: SGD, every tensor's update scaled by the norm of its weight")
    ] = "adamw"
    momentum: Annotated[float, setting("of lars", ge=0, lt=1)] = 0.9
    lr: Annotated[float, setting("learning rate at the end of the warm-up", unit="per 256 images", ge=0)] = 1.5e-4
    weight_decay: Annotated[float, setting("of the trained parameters", ge=0)] = 0.1
    weight_decay_end: Annotated[
        float | None,
        setting("weight decay at the end, along a cosine; null = it is constant (DINO: from 0.04 to 0.4)", ge=0),
    ] = None
    decay_1d: Annotated[
        bool, setting("false: no weight decay on 1-D parameters, and lars takes their gradients as they are")
    ] = True
    lr_1d: Annotated[
        float | None,
        setting("learning rate of 1-D parameters, on the same curve; null = lr", unit="per 256 images", ge=0),
    ] = None
    betas: Annotated[
        tuple[Annotated[float, setting("", ge=0, lt=1)], Annotated[float, setting("", ge=0, lt=1)]], setting("of adamw")
    ] = (0.9, 0.999)
    warmup_epochs: Annotated[float, setting("in which the rate rises from 0", unit="epochs", ge=0)] = 40
    final_lr: Annotated[float, setting("learning rate at the end of the cosine", unit="per 256 images", ge=0)] = 0.0
    schedule: Annotated[
        Literal["mocov3", "dino"],
        setting("mocov3: the step after the warm-up has the full rate; dino: the last step of the warm-up has it"),
    ] = "mocov3"
    clip: Annotated[float, setting("norm that the whole gradient is clipped to; 0 = no clipping", ge=0)] = 0.0
    clip_per_parameter: Annotated[
        bool, setting("clip every parameter's gradient by itself, as DINO does: the direction of the whole changes")
    ] = False

    def __post_init__(self) -> None:
        # a setting that nothing reads is refused, not ignored
        for name, reader in (("betas", "adamw"), ("momentum", "lars")):
            value, default = getattr(self, name), getattr(OptimConfig, name)
            if self.name != reader and value != default:
                raise ValueError(
                    f"{name} is {value}, but optim.name is {self.name} and only {reader} has {name}; "
                    f"set optim.name={reader} or leave optim.{name} at {default}"
                )
        if self.clip_per_parameter and not self.clip:
            raise ValueError("clip_per_parameter is true, but optim.clip is 0; set optim.clip to a norm, as 3")
        if self.lr_1d is not None and not self.lr:
            raise ValueError("lr_1d is set, but optim.lr is 0, whose curve it follows; set optim.lr above 0")

    def lr_at(self, when: StepInfo, batch_size: int, *, one_d: bool = False) -> float:
        """Learning rate of a step, for a global batch."""
        peak, end = self.lr, self.final_lr
        if one_d and self.lr_1d is not None:
            peak, end = self.lr_1d, self.final_lr * self.lr_1d / self.lr
        warmup = self.warmup_epochs * when.steps_per_epoch
        if self.schedule == "dino":
            return dino_warmup_cosine(when.step, when.total, round(warmup), peak, end) * batch_size / 256
        return warmup_cosine(when.step, when.total, warmup, peak, end) * batch_size / 256

    def describe_schedule(self, total: int, steps_per_epoch: int, batch_size: int) -> str:
        """The course of the learning rate in a line: steps, warm-up, largest rate and last rate; with a warning where
        the warm-up is not over at the end."""
        warmup, last = math.ceil(self.warmup_epochs * steps_per_epoch), total - 1
        # the largest is at the end of the warm-up: at its last step, or at the step after it
        steps = (*(min(max(step, 0), last) for step in (warmup - 2, warmup - 1, warmup)), last)
        at = [self.lr_at(StepInfo(step, total, steps_per_epoch), batch_size) for step in steps]
        text = f"{total} steps, {min(warmup, total)} of them warm-up; learning rate at most {max(at):.2g}, "
        text += f"at the last step {at[-1]:.2g}"
        if warmup < total or not self.lr:
            return text
        peak = self.lr * batch_size / 256
        return (
            f"{text}. The warm-up takes {self.warmup_epochs:g} epochs and the run has {total / steps_per_epoch:g}: the "
            f"rate reaches {max(at) / peak:.0%} of optim.lr and never falls; lower optim.warmup_epochs, or train longer"
        )

    def weight_decay_at(self, when: StepInfo, *, one_d: bool = False) -> float:
        """Weight decay of a step."""
        if one_d and not self.decay_1d:
            return 0.0
        if self.weight_decay_end is None:
            return self.weight_decay
        return cosine(when.step, when.total, self.weight_decay, self.weight_decay_end)


@settings("runtime")
class RuntimeConfig:
    """Where and how a run computes; may differ when it is resumed.

    Workers and checkpoints change no bit; devices, threads and precision change the rounding (and with
    `backbone.drop_path`, the number of devices changes which paths are dropped).
    """

    accelerator: Annotated[Literal["auto", "cpu", "cuda", "mps"], setting("auto: a CUDA GPU where there is one")] = (
        "auto"
    )
    devices: Annotated[
        Annotated[int, setting("", ge=1)] | Literal["auto"],
        setting("processes, each with its device; auto = all GPUs, or one process on a CPU"),
    ] = "auto"
    strategy: Annotated[
        Literal["ddp", "fsdp"],
        setting("ddp: every process holds everything; fsdp: weights, gradients and optimizer are shared out"),
    ] = "ddp"
    timeout: Annotated[int, setting("that a process waits for the others before it gives up", unit="minutes", ge=1)] = (
        30
    )
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        setting("auto: bf16 on GPUs built for it, and on CPUs with instructions for it; else fp32"),
    ] = "auto"
    workers: Annotated[
        int, setting("loader processes of each process; 0 = load in the training process", unit="processes", ge=0)
    ] = 2
    decode: Annotated[
        Literal["workers", "device"],
        setting("where JPEGs become pixels: in the loader's workers, or on the device (torchvision's CUDA decoder)"),
    ] = "workers"
    threads: Annotated[
        int, setting("CPU threads of each process; 0 = its part of this machine's cores", unit="threads", ge=0)
    ] = 0
    compile: Annotated[
        bool, setting("compile the token-wise parts of the blocks; the first steps take a minute longer")
    ] = False
    checkpoint_activations: Annotated[
        bool, setting("keep only the blocks' inputs for the backward pass: less memory, a third more time")
    ] = False
    checkpoint_every: Annotated[int, setting("between checkpoints; 0 = once an epoch", unit="steps", ge=0)] = 0
    keep_checkpoints: Annotated[int, setting("how many of the last checkpoints stay", unit="checkpoints", ge=1)] = 2
    log_every: Annotated[
        int, setting("between rows of metrics.csv; the first steps have all their rows", unit="steps", ge=1)
    ] = 10
    tensorboard: Annotated[bool, setting("write TensorBoard files where it is installed")] = True

    def __post_init__(self) -> None:
        if self.compile and self.strategy == "fsdp":
            raise ValueError("compile and runtime.strategy=fsdp do not go together yet; leave one of them out")
