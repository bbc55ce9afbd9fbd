"""Which device, how many processes, what precision: one Fabric from a RuntimeConfig."""

import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import torch

from equimid.engine.config import RuntimeConfig
from equimid.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["is_main_process", "make_fabric"]


def is_main_process() -> bool:
    """Whether this process speaks and writes for all ranks; also right before the ranks are started."""
    if "RANK" in os.environ:  # torchrun
        return int(os.environ["RANK"]) == 0
    return all(int(os.environ.get(name, "0")) == 0 for name in ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def make_fabric(runtime: RuntimeConfig) -> "Fabric":
    """A Fabric, not launched yet. More than one process means DDP, strict about parameters without gradient.

    Raises:
        UserError: the accelerator is not there.
    """
    # here, since it takes seconds to import and most commands do not train
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    if runtime.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.accelerator is cuda, but torch finds no CUDA device; use runtime.accelerator=cpu")
    if runtime.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.accelerator is mps, but torch finds no Apple GPU; use runtime.accelerator=cpu")
    on_cuda = runtime.accelerator == "cuda" or (runtime.accelerator == "auto" and torch.cuda.is_available())
    devices: Any = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or runtime.devices  # torchrun has decided already
    if devices == "auto":
        devices = torch.cuda.device_count() if on_cuda else 1
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    world = int(os.environ.get("WORLD_SIZE", devices))
    bf16 = runtime.precision == "bf16" or (
        runtime.precision == "auto" and on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    # every parameter takes part in every step: an unused one is a fault to hear of, not to search for.
    # No buffer is broadcast: cross-rank batch norm keeps them equal.
    strategy = DDPStrategy(find_unused_parameters=False, broadcast_buffers=False) if world > 1 else "auto"
    nodes = max(1, world // devices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fabric(
            accelerator="cuda" if on_cuda else runtime.accelerator.replace("auto", "cpu"),
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision="bf16-mixed" if bf16 else "32-true",
        )
