"""How a run uses its machine: threads, the allocator, bf16 on a CPU."""

import ctypes
import json
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from equimid.engine.config import RuntimeConfig

__all__ = [
    "OutOfMemory",
    "bf16_units",
    "cores",
    "cpu_precision",
    "give_back_freed_memory",
    "host_memory",
    "is_out_of_memory",
    "keep_freed_memory",
    "keep_kernels",
    "loader_remedy",
    "set_threads",
    "settle_precision",
]

logger = logging.getLogger("equimid")

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc, malloc.h

# A block of width 192 is 2.2 times faster with avx512_bf16, and more with AMX. The conversions eat the gain of narrower
# ones (with AMX: 0.7 at width 64, 1.1 at 128).
_LEAST_WIDTH = 192


class OutOfMemory(Exception):  # noqa: N818  # the run makes a UserError of it, with its settings
    """The device or the host has no memory left for a step."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of this machine; 0 = not known."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0


def set_threads(wanted: int, processes: int) -> None:
    """Set the number of torch's threads on the CPU. Fabric sets a number of its own when it starts processes, so call
    this after it.

    Args:
        wanted: 0 = OMP_NUM_THREADS where the user has set it; else each process gets its part of the cores.
        processes: on this machine.
    """
    by_user = os.environ.get("OMP_NUM_THREADS")
    if by_user == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        by_user = None  # torchrun sets it so where the user did not
    if wanted:
        torch.set_num_threads(wanted)
    elif processes > 1:
        torch.set_num_threads(max(1, cores() // processes) if by_user is None else int(by_user.split(",")[0]))


def loader_remedy(device: torch.device, workers: int, decodes: bool) -> str:
    """Say what helps where the device waits for images; "" where all cores compute already."""
    busy = workers + (torch.get_num_threads() if device.type == "cpu" else 1)
    if busy < cores():
        return f"raise runtime.workers (it is {workers}, of {cores()} cores {busy} are in use)"
    if device.type == "cpu":
        return ""
    on_device = "" if decodes or device.type != "cuda" else ", or decode on the GPU (runtime.decode=device)"
    return f"all {cores()} cores are in use: make small shards of the images once (equimid pack){on_device}"


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next step instead of handing them to the system and back page by page.

    A step on a CPU frees and asks for gigabytes; the page faults cost a fifth of a ViT-S step. Holds for the whole
    process. Returns whether it could be set.
    """
    libc = _glibc()
    return libc is not None and bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, -1))


def keep_kernels() -> None:
    """Have oneDNN keep the kernels that it makes for every shape, where it keeps 1,024 by default: posed grids give a
    step some hundred shapes, and bf16 kernels cost more to make than to run. Before torch's first product."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def give_back_freed_memory() -> None:
    """Return freed memory to the system now: blocks of changing sizes leave gaps, which would add up over days."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:  # no such library to look into
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory: on a CPU only torch's message says so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def bf16_units() -> str:
    """The instructions for bf16 matrix products that this processor has: "amx", "avx512_bf16", or "" for none."""
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""


def cpu_precision(embed_dim: int) -> Literal["fp32", "bf16"]:
    """What a network of this width (columns of a token) computes in on this processor."""
    return "bf16" if embed_dim >= _LEAST_WIDTH and bf16_units() else "fp32"


def settle_precision(runtime: RuntimeConfig, embed_dim: int, folder: Path, alone: bool = True) -> RuntimeConfig:
    """`auto` becomes what `cpu_precision` says, where one CPU process trains.

    The choice is kept in the run's folder: a run that is resumed keeps it, also on another processor.

    Args:
        embed_dim: width of the network (columns of a token).
        alone: no other process computes; several take fp32, since their processors may differ.
    """
    on_cuda = runtime.accelerator == "auto" and torch.cuda.is_available()
    if runtime.precision != "auto" or on_cuda or runtime.accelerator in ("cuda", "mps"):
        return runtime
    file = folder / "precision.json"
    try:
        note = json.loads(file.read_text())
        if note["precision"] in ("fp32", "bf16") and note["width"] == embed_dim:
            return replace(runtime, precision=note["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        if any((folder / "checkpoints").glob("step-*")):  # begun before there was a choice
            return replace(runtime, precision="fp32")
    precision = cpu_precision(embed_dim) if alone else "fp32"
    if precision == "bf16":
        logger.info("bf16: this processor computes in it (%s); runtime.precision=fp32 keeps float32", bf16_units())
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"precision": precision, "units": bf16_units(), "width": embed_dim}) + "\n")
    return replace(runtime, precision=precision)
