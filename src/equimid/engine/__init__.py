"""The engine: our loop on Lightning Fabric, checkpoints, resume, health checks."""

from equimid.engine.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from equimid.engine.config import RuntimeConfig, TrainConfig
from equimid.engine.launch import is_main_process, make_fabric
from equimid.engine.loop import Outcome, Trainer
from equimid.engine.optimizer import OptimConfig

__all__ = [
    "Checkpoint",
    "OptimConfig",
    "Outcome",
    "RuntimeConfig",
    "TrainConfig",
    "Trainer",
    "is_main_process",
    "latest_checkpoint",
    "make_fabric",
    "save_checkpoint",
]
