"""Who started the processes: torchrun, SLURM or nobody yet; what the environment says is not asked again."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest
import torch
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy

from equimid.console import is_main_process
from equimid.engine import RuntimeConfig, make_fabric
from equimid.engine.launch import Started, StopRequest, ranks_end_together, started
from equimid.errors import UserError

CPU = RuntimeConfig(accelerator="cpu", precision="fp32")
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "ser", "SLURM_NTASKS": "32", "SLURM_NNODES": "4"}
TASK = {
    **JOB, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "32", "SLURM_STEP_NUM_NODES": "4",
    "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
}  # fmt: skip
SHELL = {"SLURM_JOB_NAME": "bash", "SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "40001"}
TORCHRUN = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Started("fabric", "auto")),
        (TORCHRUN, Started("torchrun", 8, 2)),
        (TASK, Started("slurm", 8, 4)),
        # torchrun started by srun, one task a node
        ({**TASK, **TORCHRUN}, Started("torchrun", 8, 2)),
        # salloc, then srun: an interactive job, but these are tasks
        ({**TASK, "SLURM_JOB_NAME": "interactive"}, Started("slurm", 8, 4)),
        # shells in an allocation: salloc alone, the step that salloc makes of it, srun --pty bash
        ({**JOB, "SLURM_JOB_NAME": "interactive"}, Started("fabric", "auto")),
        ({**JOB, "SLURM_JOB_NAME": "bash"}, Started("fabric", "auto")),
        ({**JOB, **SHELL, "SLURM_JOB_NAME": "interactive", "SLURM_STEP_NUM_TASKS": "1"}, Started("fabric", "auto")),
        ({**JOB, **SHELL}, Started("fabric", "auto")),
        # one task that has all GPUs of its node
        ({**JOB, "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}, Started("fabric", "auto")),
        # a process that Fabric started there
        ({**JOB, "SLURM_NTASKS": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, Started("fabric", "auto")),
    ],
)
def test_what_the_environment_says(environment, expected):
    assert started(CPU, environment) == expected


@pytest.mark.parametrize(
    ("environment", "devices", "message"),
    [
        (TASK, 4, "runtime.devices is 4, but slurm started 8 processes on this node"),
        (TORCHRUN, 2, "runtime.devices is 2, but torchrun started 8 processes on this node"),
        (JOB, "auto", "32 tasks, but equimid was not started by srun"),
        ({**TASK, "SLURM_NTASKS_PER_NODE": "4"}, "auto", "--nodes=4 --ntasks-per-node=N"),
        ({k: v for k, v in TASK.items() if k != "SLURM_NTASKS_PER_NODE"}, "auto", "--ntasks-per-node not given"),
        ({**TASK, "SLURM_STEP_NUM_TASKS": "30"}, "auto", "30 tasks on 4 nodes"),
        ({**TORCHRUN, "WORLD_SIZE": "12"}, "auto", "same --nproc-per-node"),
    ],
)
def test_what_contradicts_itself_is_told(environment, devices, message):
    with pytest.raises(UserError) as caught:
        started(RuntimeConfig(devices=devices), environment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def environment(monkeypatch):
    """Nothing of a launcher but what is given."""

    def put(variables):
        for name in list(os.environ):
            if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in TORCHRUN:
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(("variables", "by"), [(TASK, "SLURM"), (TORCHRUN, "TorchElastic"), ({}, "Lightning")])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_fabric_gets_what_the_environment_says(environment, variables, by, strategy):
    environment(variables)
    runtime = RuntimeConfig(
        accelerator="cpu", precision="fp32", strategy=strategy, timeout=7, devices="auto" if variables else 3
    )
    fabric = make_fabric(runtime)
    kind = type(fabric.strategy.cluster_environment).__name__
    assert kind == f"{by}Environment"
    ranks, rank, node = {"SLURM": (32, 9, 1), "TorchElastic": (16, 9, 0), "Lightning": (3, 0, 0)}[by]
    assert fabric.strategy.num_nodes * fabric.strategy.num_processes == ranks
    assert fabric.strategy.cluster_environment.global_rank() == rank
    assert fabric.strategy.node_rank == node
    assert isinstance(fabric.strategy, DDPStrategy if strategy == "ddp" else ModelParallelStrategy)
    assert fabric.strategy._timeout == timedelta(minutes=7)
    assert fabric.strategy._process_group_backend == "gloo"
    assert is_main_process() is (by == "Lightning")


def test_one_process_has_no_group_whatever_the_strategy(environment):
    environment({})
    fabric = make_fabric(RuntimeConfig(accelerator="cpu", precision="fp32", strategy="fsdp"))
    assert fabric.world_size == 1
    assert type(fabric.strategy).__name__ == "SingleDeviceStrategy"


def test_the_timeout_is_checked():
    with pytest.raises(UserError, match=r"runtime.timeout is 0; it must be 1 or more"):
        RuntimeConfig(timeout=0)


def test_a_schedulers_warning_is_noted_and_the_handler_given_back():
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as request:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.signal == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is before


def test_only_what_a_collective_says_is_of_other_processes(monkeypatch):
    monkeypatch.setattr("equimid.engine.launch.world_size", lambda: 2)
    with pytest.raises(UserError, match="another process of the run ended"), ranks_end_together():
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(UserError, match="another process of the run ended"), ranks_end_together():
        raise torch.distributed.DistBackendError("watchdog")
    with pytest.raises(RuntimeError, match="size mismatch"), ranks_end_together():
        raise RuntimeError("size mismatch")
    monkeypatch.setattr("equimid.engine.launch.world_size", lambda: 1)
    with pytest.raises(RuntimeError, match="gloo"), ranks_end_together():
        raise RuntimeError("gloo")


CHILD = """
import time
from equimid.engine.launch import _end_with_the_main_process
_end_with_the_main_process()
print("watching", flush=True)
time.sleep(100)
"""
MAIN = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", sys.argv[1]]).pid, flush=True)
time.sleep(100)
"""


def test_a_process_ends_with_the_one_that_started_it():
    main = subprocess.Popen([sys.executable, "-c", MAIN, CHILD], stdout=subprocess.PIPE, text=True)
    child = int(main.stdout.readline())
    assert main.stdout.readline() == "watching\n"
    main.kill()
    main.wait()
    for _ in range(200):
        try:
            with open(f"/proc/{child}/stat") as stream:
                if stream.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except FileNotFoundError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("it is still there after 20 seconds")
