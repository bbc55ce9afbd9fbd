"""What a run makes of the machine that it finds: threads, the allocator, bf16 on a CPU."""

import ctypes
import json
import logging
import math
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from equimid.backbones import Backbone, run_block
from equimid.engine.config import RuntimeConfig

__all__ = [
    "OutOfMemory",
    "bf16_gain",
    "bf16_gain_of",
    "cores",
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

# Where bf16 is chosen it changes every number: a gain that another round of timing might not find is not enough.
BF16_GAIN = 1.5
# Of narrower networks the conversions eat the gain (0.7 at width 64, 1.1 at 128, with AMX): not measured.
_BF16_LEAST_WIDTH = 192
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc, malloc.h


class OutOfMemory(Exception):  # noqa: N818  # what happened, to be told with what the run asked for
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
    """So many threads for torch on the CPU; 0 = each of several processes on this machine gets its part of the cores,
    and what OMP_NUM_THREADS says is kept. Fabric sets a number of its own when it starts processes: call it after."""
    told = os.environ.get("OMP_NUM_THREADS")
    if told == "1" and "TORCHELASTIC_RUN_ID" in os.environ:
        told = None  # torchrun sets it so where the user did not
    if wanted:
        torch.set_num_threads(wanted)
    elif processes > 1:
        torch.set_num_threads(max(1, cores() // processes) if told is None else int(told.split(",")[0]))


def loader_remedy(device: torch.device, workers: int, decodes: bool) -> str:
    """What helps where the device waits for images; "" where all cores are busy computing already."""
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
    """Hand what is free to the system now: blocks of changing sizes leave gaps, which would add up over days."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:  # no such library to look into
        return None


def settle_precision(
    runtime: RuntimeConfig, backbone: Backbone, images: int, folder: Path, alone: bool = True
) -> RuntimeConfig:
    """`auto` on one CPU process becomes bf16 where a block of this backbone is measured to be much faster, else fp32.

    The choice is kept in the run's folder: a run that goes on, goes on with it.

    Args:
        images: of a micro-batch.
        alone: no other process computes; several take fp32, since each would measure for itself.
    """
    on_cuda = runtime.accelerator == "auto" and torch.cuda.is_available()
    if runtime.precision != "auto" or on_cuda or runtime.accelerator in ("cuda", "mps"):
        return runtime
    file = folder / "precision.json"
    try:
        note = json.loads(file.read_text())
        kept: Literal["fp32", "bf16"] = note["precision"]
        if kept in ("fp32", "bf16") and note["width"] == backbone.embed_dim:
            return replace(runtime, precision=kept)
    except (OSError, ValueError, KeyError, TypeError):
        if any((folder / "checkpoints").glob("step-*")):  # begun before there was a choice
            return replace(runtime, precision="fp32")
    set_threads(runtime.threads, 1)
    gain = bf16_gain_of(backbone, images) if alone else 0.0
    precision: Literal["fp32", "bf16"] = "bf16" if gain >= BF16_GAIN else "fp32"
    if precision == "bf16":
        logger.info("bf16: this processor computes a block %.1f times faster so (runtime.precision=fp32 refuses)", gain)
    folder.mkdir(parents=True, exist_ok=True)
    note = {"precision": precision, "bf16_gain": round(gain, 2), "width": backbone.embed_dim}
    file.write_text(json.dumps(note) + "\n")
    return replace(runtime, precision=precision)


def bf16_gain_of(backbone: Backbone, images: int) -> float:
    """`bf16_gain` of a block of this network in a step of so many images; 0 where it is too narrow to be asked."""
    if backbone.embed_dim < _BF16_LEAST_WIDTH:
        return 0.0
    height, width = backbone.patch_embed.grid_size
    shape = (min(images, 16), height * width + 1, backbone.embed_dim)
    return bf16_gain(backbone.blocks[-1], torch.linspace(-1, 1, math.prod(shape)).view(shape))


def bf16_gain(block: nn.Module, tokens: Tensor, rounds: int = 3) -> float:
    """How many times faster a block's forward and backward pass is under bf16 autocast on this CPU, measured now.

    Args:
        block: a transformer block; its weights and gradients are left as they were.
        tokens: (B, T, D) float32, as many as a step has, or a few thousand.
    """
    parameters = [p for p in block.parameters() if p.requires_grad]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(rounds + 1):
        for bf16, times in seconds.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                out = run_block(block, tokens)
            torch.autograd.grad(out.float().sum(), parameters)
            times.append(time.perf_counter() - began)
    full, half = (statistics.median(times[1:]) for times in seconds.values())
    return full / half


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python had no memory: on a CPU torch says so in words only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
