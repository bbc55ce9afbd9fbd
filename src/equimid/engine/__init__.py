"""The engine: our loop on Lightning Fabric, checkpoints, resume, health checks."""

from equimid.engine.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from equimid.engine.config import RuntimeConfig, TrainConfig
from equimid.engine.cpu_bf16 import settle_precision
from equimid.engine.launch import make_fabric, ranks_end_together, started
from equimid.engine.loop import Outcome, Trainer
from equimid.engine.machine import (
    OutOfMemory,
    host_memory,
    keep_freed_memory,
    keep_kernels,
    set_threads,
)
from equimid.engine.optimizer import OptimConfig
from equimid.engine.sampler import epoch_order
from equimid.engine.sharding import is_sharded, whole_state

__all__ = [
    "Checkpoint",
    "OptimConfig",
    "OutOfMemory",
    "Outcome",
    "RuntimeConfig",
    "TrainConfig",
    "Trainer",
    "epoch_order",
    "host_memory",
    "is_sharded",
    "keep_freed_memory",
    "keep_kernels",
    "latest_checkpoint",
    "make_fabric",
    "ranks_end_together",
    "save_checkpoint",
    "set_threads",
    "settle_precision",
    "started",
    "whole_state",
]
