"""Make a Fabric from a RuntimeConfig: the device, the processes, the precision.

torchrun, SLURM's srun, or Fabric (one machine, runtime.devices) starts the processes. The environment says how many
tasks and nodes there are; no setting repeats it.
"""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from equimid.distributed import world_size
from equimid.engine.config import RuntimeConfig
from equimid.engine.machine import set_threads
from equimid.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Started", "StopRequest", "make_fabric", "ranks_end_together", "started"]


@dataclass(frozen=True)
class Started:
    """Who started the processes of this run.

    Attributes:
        by: "torchrun", "slurm", or "fabric", which starts them itself where there are several.
        devices: processes on each node.
        nodes: how many.
    """

    by: Literal["torchrun", "slurm", "fabric"]
    devices: int | Literal["auto"]
    nodes: int = 1

    @property
    def alone(self) -> bool:
        """Whether one process of a CPU does it all."""
        return self.devices in ("auto", 1) and self.nodes == 1


def started(runtime: RuntimeConfig, environment: Mapping[str, str] = os.environ) -> Started:
    """What the environment says of the processes.

    SLURM's variables are also set in a shell of an allocation (salloc, srun --pty bash) and in the script of a job,
    where Fabric takes them for those of a run; a run's processes are the tasks of a step that srun started without a
    terminal.

    Raises:
        UserError: it contradicts runtime.devices, or a job of several tasks was not started by srun.
    """
    by: Literal["torchrun", "slurm"]
    if "LOCAL_WORLD_SIZE" in environment:
        by, option, devices = "torchrun", "--nproc-per-node", int(environment["LOCAL_WORLD_SIZE"])
        nodes, rest = divmod(int(environment["WORLD_SIZE"]), devices)
        if rest:
            raise UserError(
                f"torchrun started {devices} processes here and {environment['WORLD_SIZE']} in all; give every node "
                f"the same {option}"
            )
    else:
        has_terminal = "SLURM_PTY_PORT" in environment
        step = "SLURM_STEP_ID" in environment and not has_terminal
        job_tasks = environment.get("SLURM_NTASKS", "1")
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", job_tasks) if step else job_tasks)
        in_shell = has_terminal or environment.get("SLURM_JOB_NAME") in ("bash", "interactive")
        if tasks == 1 or "LOCAL_RANK" in environment or (in_shell and not step):
            return Started("fabric", runtime.devices)
        if not step:
            raise UserError(
                f"this SLURM job has {tasks} tasks, but equimid was not started by srun: write srun equimid ... in "
                "the script (or ask for one task with all GPUs of a node)"
            )
        by, option = "slurm", "--ntasks-per-node"
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", 1)))
        devices, rest = divmod(tasks, nodes)
        per_node = environment.get("SLURM_NTASKS_PER_NODE")
        if per_node is None or rest or int(per_node) != devices:
            raise UserError(
                f"SLURM started {tasks} tasks on {nodes} nodes, with {option} {per_node or 'not given'}; give "
                f"--nodes={nodes} {option}=N, as many tasks on every node as it has GPUs for the run"
            )
    if runtime.devices not in ("auto", devices):
        raise UserError(
            f"runtime.devices is {runtime.devices}, but {by} started {devices} processes on this node; "
            f"leave runtime.devices out, or give {option} {runtime.devices}"
        )
    return Started(by, devices, nodes)


def make_fabric(runtime: RuntimeConfig) -> "Fabric":
    """Make a Fabric, which is not launched yet. Several processes use DDP or FSDP, as runtime.strategy says.

    Raises:
        UserError: the accelerator is not there, or the processes are not those that the settings ask for.
    """
    # here, since it takes seconds to import and most commands do not train
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    if runtime.accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("runtime.accelerator is cuda, but torch finds no CUDA device; use runtime.accelerator=cpu")
    if runtime.accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("runtime.accelerator is mps, but torch finds no Apple GPU; use runtime.accelerator=cpu")
    on_cuda = runtime.accelerator == "cuda" or (runtime.accelerator == "auto" and torch.cuda.is_available())
    launcher = started(runtime)
    devices = launcher.devices
    if devices == "auto":
        devices = torch.cuda.device_count() if on_cuda else 1
    ranks = devices * launcher.nodes
    set_threads(runtime.threads, devices)
    bf16 = runtime.precision == "bf16" or (
        runtime.precision == "auto" and on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    environment = {
        "torchrun": TorchElasticEnvironment, "slurm": SLURMEnvironment, "fabric": LightningEnvironment,
    }[launcher.by]()  # fmt: skip
    if launcher.by == "fabric" and devices > 1 and int(os.environ.get("LOCAL_RANK", "0")):
        _end_with_the_main_process()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fabric(
            accelerator="cuda" if on_cuda else runtime.accelerator.replace("auto", "cpu"),
            devices=devices,
            num_nodes=launcher.nodes,
            strategy=_strategy(runtime, ranks, on_cuda) if ranks > 1 else "auto",
            precision="bf16-mixed" if bf16 else "32-true",
            plugins=[environment],
        )


def _strategy(runtime: RuntimeConfig, ranks: int, on_cuda: bool) -> Any:
    from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

    from equimid.engine.sharding import shard

    # small numbers can travel between hosts without waiting for the devices
    group: dict[str, Any] = {
        "process_group_backend": "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
        "timeout": timedelta(minutes=runtime.timeout),
    }
    kind = ModelParallelStrategy if runtime.strategy == "fsdp" else DDPStrategy

    class Strategy(kind):  # type: ignore[misc, valid-type]
        def _setup_distributed(self) -> None:
            _join_as_restarted(group["process_group_backend"], group["timeout"], self.root_device)
            super()._setup_distributed()  # takes a group that is there

    if runtime.strategy == "fsdp":
        return Strategy(shard, data_parallel_size=ranks, tensor_parallel_size=1, **group)
    # every parameter takes part in every step, and an unused one is an error.
    # No buffer is broadcast: cross-rank batch norm keeps them equal.
    return Strategy(find_unused_parameters=False, broadcast_buffers=False, **group)


def _join_as_restarted(backend: str, timeout: timedelta, device: torch.device) -> None:
    """Join the group of torchrun's processes under the number of their restart.

    torchrun's store outlives the processes: after a restart a rank can find there the address of one that is dead,
    and the restart fails (seen with torch 2.15). The number is the same for all processes of one node; over several
    nodes it may not be, and there torchrun itself must make a new store (TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1).
    """
    environment = os.environ
    if dist.is_initialized():  # a second run of this program
        return
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("GROUP_WORLD_SIZE") != "1":
        return
    store = dist.TCPStore(  # type: ignore[attr-defined]  # public, but not in its __all__
        environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False, timeout=timeout
    )
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(  # type: ignore[attr-defined]
            f"restart {environment['TORCHELASTIC_RESTART_COUNT']}", store
        ),
        rank=int(environment["RANK"]),
        world_size=int(environment["WORLD_SIZE"]),
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )


def _end_with_the_main_process() -> None:
    """End this process when the one that started it dies: Fabric ends the others only if one that it started dies."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watches the main process").start()


@contextmanager
def ranks_end_together() -> Iterator[None]:
    """Where another rank fails, end this one with a line instead of a traceback.

    A rank that waits for a dead one gets torch's error (gloo at once, NCCL from its watchdog), or is ended by what
    started it: Fabric, torchrun, or srun --kill-on-bad-exit.

    Raises:
        UserError: a collective failed.
    """
    try:
        yield
    except RuntimeError as error:
        is_of_collective = isinstance(error, dist.DistBackendError | dist.DistNetworkError) or any(
            name in str(error) for name in ("gloo", "NCCL", "ProcessGroup")
        )
        if world_size() == 1 or not is_of_collective:
            raise
        raise UserError(
            "another process of the run ended or cannot be reached, so this one stops; if no message above says why, "
            f"it was killed ({str(error).splitlines()[0][:160]})"
        ) from error


class StopRequest:
    """While active, the first SIGINT, SIGTERM or SIGUSR1 is noted in `signal` instead of ending the process."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __enter__(self) -> "StopRequest":
        numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
