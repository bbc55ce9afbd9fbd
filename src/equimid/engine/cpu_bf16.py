"""bf16 on a CPU, where the processor multiplies bf16 matrices and the network is wide enough to gain by it."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from equimid.backbones import Backbone
from equimid.engine.config import RuntimeConfig

__all__ = ["bf16_units", "cpu_precision", "settle_precision"]

Precision = Literal["fp32", "bf16"]

logger = logging.getLogger("equimid")

# A block of width 192 is 2.2 times faster with avx512_bf16, and more with AMX. The conversions eat the gain of narrower
# ones (with AMX: 0.7 at width 64, 1.1 at 128).
_LEAST_WIDTH = 192


def bf16_units() -> str:
    """The instructions for bf16 matrix products that this processor has: "amx", "avx512_bf16", or "" for none."""
    if torch.cpu._is_amx_tile_supported():
        return "amx"
    return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else ""


def cpu_precision(embed_dim: int) -> Precision:
    """What a network of this width (columns of a token) computes in on this processor."""
    return "bf16" if embed_dim >= _LEAST_WIDTH and bf16_units() else "fp32"


def settle_precision(runtime: RuntimeConfig, backbone: Backbone, folder: Path, alone: bool = True) -> RuntimeConfig:
    """`auto` on one CPU process becomes bf16 where `bf16_units` finds some and the network is 192 wide or more.

    The choice is kept in the run's folder: a run that is resumed keeps it, also on another processor.

    Args:
        alone: no other process computes; several take fp32, since their processors may differ.
    """
    on_cuda = runtime.accelerator == "auto" and torch.cuda.is_available()
    if runtime.precision != "auto" or on_cuda or runtime.accelerator in ("cuda", "mps"):
        return runtime
    file = folder / "precision.json"
    try:
        note = json.loads(file.read_text())
        kept: Precision = note["precision"]
        if kept in ("fp32", "bf16") and note["width"] == backbone.embed_dim:
            return replace(runtime, precision=kept)
    except (OSError, ValueError, KeyError, TypeError):
        if any((folder / "checkpoints").glob("step-*")):  # begun before there was a choice
            return replace(runtime, precision="fp32")
    precision = cpu_precision(backbone.embed_dim) if alone else "fp32"
    if precision == "bf16":
        logger.info("bf16: this processor computes in it (%s); runtime.precision=fp32 keeps float32", bf16_units())
    folder.mkdir(parents=True, exist_ok=True)
    note = {"precision": precision, "units": bf16_units(), "width": backbone.embed_dim}
    file.write_text(json.dumps(note) + "\n")
    return replace(runtime, precision=precision)
