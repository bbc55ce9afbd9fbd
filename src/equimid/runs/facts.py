"""run.json: the facts of a run that are neither settings nor measurements, and on what it ran."""

import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from equimid.config import Config
from equimid.data import ImageCheck
from equimid.engine import latest_checkpoint
from equimid.files import write_json
from equimid.records import FACTS, read_facts

__all__ = ["note", "note_start", "note_training", "provenance"]


def note_start(folder: Path) -> None:
    """Add this start to "starts": date, command line, processor, versions and threads."""
    starts = read_facts(folder).get("starts")
    program = Path(sys.argv[0]).name
    words = ["equimid" if program == "__main__.py" else program, *sys.argv[1:]]
    here = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "command": shlex.join(words), **provenance()}
    note(folder, starts=[*(starts if isinstance(starts, list) else []), here])


def note(folder: Path, **facts: Any) -> None:
    """Add facts to run.json."""
    write_json(folder / FACTS, read_facts(folder) | facts)


def note_training(config: Config, folder: Path) -> None:
    """How many views of an image the run was trained on (runs with other numbers are no fair comparison), and how many
    steps it did of how many (a run that was stopped is not one of several seeds)."""
    plan = config.plan()
    count = len(plan.crops) + sum(extra.turns for extra in plan.extra.values())
    facts: dict[str, Any] = {"views": plan.label, "views_of_an_image": count}
    checkpoint, image_check = latest_checkpoint(folder / "checkpoints"), ImageCheck.load(folder)
    if checkpoint and image_check:
        total = config.train.total_steps(image_check.listed - len(image_check.unreadable))
        facts |= {"steps": checkpoint.step, "total_steps": total}
    note(folder, **facts)


def provenance() -> dict[str, str]:
    """Of this process: processor, versions of what computes, threads."""
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "equimid": _version(),
        "commit": _commit(),
        "threads": str(torch.get_num_threads()),
    }


def _version() -> str:
    try:
        return version("equimid")
    except PackageNotFoundError:  # run from its source
        return ""


def _processor() -> str:
    name, units = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return name
    entries = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = entries.get("flags", "").split()
    units = ", ".join(unit for unit in ("amx_tile", "avx512_bf16", "avx512f") if unit in flags)
    return f"{entries.get('model name', name).strip()} ({units or 'no AVX-512'})"


def _commit() -> str:
    """Of the source that runs, with + where it was changed since; "" where it is no checkout."""
    here = Path(__file__).parents[1]
    try:
        commit, changed = (
            subprocess.check_output(["git", *words], cwd=here, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
            for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", "."])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit + ("+" if changed else "")
