"""How long to train, and on what: the part that changes the result, and the part that must not."""

from dataclasses import dataclass
from typing import Literal

from equimid.errors import UserError

__all__ = ["RuntimeConfig", "TrainConfig"]


@dataclass(frozen=True)
class TrainConfig:
    """
    batch_size: images of a step over all ranks
    epochs:     passes over the images; the last, incomplete batch of an epoch is left out
    steps:      stop after this many steps instead of after the epochs (0: after the epochs)
    accumulate: micro-batches of a step; each one contrasts its own images only
    """

    batch_size: int = 256
    epochs: int = 100
    steps: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("epochs", 1), ("steps", 0), ("accumulate", 1)):
            if getattr(self, name) < least:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be {least} or more")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.batch_size is {self.batch_size}, which train.accumulate {self.accumulate} does not divide"
            )

        if self.micro_batch < 2:
            raise UserError(
                f"train.batch_size {self.batch_size} in {self.accumulate} micro-batch(es) leaves one image in each; "
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


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how it runs; may differ when a run goes on. Workers and checkpoints change no bit; devices, threads and
    precision change the rounding (and with `backbone.drop_path`, the number of devices which paths are dropped).

    accelerator:      auto, cpu, cuda or mps
    devices:          processes, one a device; auto = all GPUs, or one process on a CPU
    strategy:         ddp = every process holds everything; fsdp = weights, gradients and optimizer are shared out
    timeout:          minutes that a process waits for the others before it gives up
    precision:        auto = bf16 on GPUs built for it, and on a CPU where it is measured to be much faster; else fp32
    workers:          loader processes per rank; 0 loads in the training process
    decode:           JPEGs become pixels in the loader's workers, or on the device (torchvision's CUDA decoder)
    threads:          CPU threads per rank; 0 = the cores of this machine shared out over its ranks
    compile:          run the token-wise parts of the blocks through torch.compile; the first steps take a minute longer
    checkpoint_activations: keep only the blocks' inputs for the backward pass and compute the rest again: less memory,
                      a third more time
    checkpoint_every: steps between checkpoints; 0 = once an epoch
    keep_checkpoints: how many of the last ones stay
    log_every:        steps between rows of metrics.csv (the first steps have all their rows)
    tensorboard:      write TensorBoard files where it is installed
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int | Literal["auto"] = "auto"
    strategy: Literal["ddp", "fsdp"] = "ddp"
    timeout: int = 30
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 2
    decode: Literal["workers", "device"] = "workers"
    threads: int = 0
    compile: bool = False
    checkpoint_activations: bool = False
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        least = {"timeout": 1, "workers": 0, "threads": 0, "checkpoint_every": 0, "keep_checkpoints": 1, "log_every": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise UserError(f"runtime.{name} is {getattr(self, name)}; it must be {low} or more")
        if self.devices != "auto" and self.devices < 1:
            raise UserError(f"runtime.devices is {self.devices}; it must be 1 or more, or auto")
        if self.compile and self.strategy == "fsdp":
            raise UserError("runtime.compile and runtime.strategy=fsdp do not go together yet; leave one of them out")
