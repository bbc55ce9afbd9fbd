"""What the bits depend on beside the code: processor, libraries, threads."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["commit", "differing", "machine"]

# kernels are chosen by these
_FLAGS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile",
    "amx_bf16", "amx_int8",
)  # fmt: skip
_PACKAGES = (
    "torch", "torchvision", "timm", "lightning", "numpy", "scipy", "scikit-learn", "pillow", "simplejpeg", "matplotlib",
    "faster-coco-eval", "tensorboard",
)  # fmt: skip


def machine() -> dict[str, object]:
    """Of this process."""
    cpu = _processor()
    known = set(cpu.get("flags", cpu.get("Features", "")).split())
    family = [f"{key} {cpu[key]}" for key in ("cpu family", "model") if key in cpu]
    described = [cpu.get("model name", platform.processor()), *family]
    return {
        "processor": ", ".join(described),
        "flags": " ".join(flag for flag in _FLAGS if flag in known),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def differing(recorded: dict[str, object], here: dict[str, object]) -> list[str]:
    """What of it is another, in words."""
    return [
        f"{key}: {recorded.get(key)} there, {here.get(key)} here"
        for key in dict.fromkeys([*recorded, *here])
        if recorded.get(key) != here.get(key)
    ]


def commit(folder: Path) -> str:
    """The last one that changed the sources in that folder, and whether they are changed against it."""
    try:
        head = _git(folder, "log", "-1", "--format=%H", "--", ".")
        return head + (" with changes" if _git(folder, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> dict[str, str]:
    """Of Linux; of other systems only what Python says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
