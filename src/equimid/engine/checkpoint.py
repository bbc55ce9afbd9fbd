"""Checkpoints: a folder of safetensors and JSON with checksums, written beside and renamed; nothing is unpickled.

checkpoints/step-00000120/model.safetensors      the task's state
                          optimizer.safetensors  "<parameter number>.<name>" tensors
                          state.json             step, checksums, optimizer settings, what the run needs
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from equimid.errors import UserError

__all__ = ["Checkpoint", "discard_checkpoint", "latest_checkpoint", "save_checkpoint"]

logger = logging.getLogger("equimid")

_TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")


class _DamagedError(Exception):
    """A checkpoint that cannot be used; names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    step: steps done
    run:  what the run stored beside the tensors (data fingerprint and the like)
    """

    folder: Path
    step: int
    run: dict[str, Any]
    checksums: dict[str, str]
    param_groups: list[dict[str, Any]]

    @property
    def identity(self) -> str:
        """Short hash of the weights, for records."""
        return self.checksums["model.safetensors"][:16]

    def restore(self, task: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load weights and, if given, the optimizer; strict, bit for bit."""
        task.load_state_dict(load_file(self.folder / "model.safetensors"))
        if optimizer is not None:
            state: dict[int, dict[str, Tensor]] = {}
            for key, tensor in load_file(self.folder / "optimizer.safetensors").items():
                number, name = key.split(".", 1)
                state.setdefault(int(number), {})[name] = tensor
            optimizer.load_state_dict({"state": state, "param_groups": self.param_groups})


def save_checkpoint(
    folder: Path, step: int, task: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder`; afterwards keep the last `keep`.

    Raises:
        UserError: the disk refused; earlier checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    beside, final = folder / f".writing-{step:08d}", folder / f"step-{step:08d}"
    try:
        _write(beside, step, task, optimizer, run)
        if final.exists():
            shutil.rmtree(final)
        os.replace(beside, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        older = _steps(folder)
        kept = f"the checkpoint of step {_number(older[0])} is still valid" if older else "there is no older checkpoint"
        raise UserError(
            f"could not write the checkpoint of step {step} into {folder}: {error}; {kept}. "
            "Free some space and run the same command again"
        ) from error
    for old in _steps(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def discard_checkpoint(folder: Path, step: int) -> None:
    """Remove the checkpoint of `step`: its weights turned out to be of no use."""
    shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; None where none was ever written. Damaged ones are named.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    steps = _steps(folder)
    damage = []
    for candidate in steps:
        try:
            return _verified(candidate)
        except _DamagedError as error:
            damage.append(str(error))
            logger.warning("%s; falling back to the checkpoint before it", error)
    if damage:
        raise UserError(f"no checkpoint in {folder} is whole: {'; '.join(damage)}. Choose a new --out folder")
    return None


def _write(beside: Path, step: int, task: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any]) -> None:
    beside.mkdir()
    state = optimizer.state_dict()
    tensors = {f"{number}.{name}": value for number, values in state["state"].items() for name, value in values.items()}
    for name, content in zip(_TENSOR_FILES, (task.state_dict(), tensors), strict=True):
        save_file({key: value.detach().cpu().contiguous() for key, value in content.items()}, beside / name)
        _sync(beside / name)
    entry = {
        "step": step,
        "checksums": {name: _checksum(beside / name) for name in _TENSOR_FILES},
        "param_groups": state["param_groups"],
        "run": run,
    }
    (beside / "state.json").write_text(json.dumps({**entry, "checksum": _checksum_of(entry)}, indent=1))
    _sync(beside / "state.json")


def _verified(folder: Path) -> Checkpoint:
    try:
        entry = json.loads((folder / "state.json").read_text())
        if entry.pop("checksum") != _checksum_of(entry) or entry["step"] != _number(folder):
            raise ValueError("its checksum does not match")
        checkpoint = Checkpoint(folder, entry["step"], entry["run"], entry["checksums"], entry["param_groups"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{folder / 'state.json'} is damaged ({error})") from error
    for name in _TENSOR_FILES:
        try:
            found = _checksum(folder / name)
        except OSError as error:
            raise _DamagedError(f"{folder / name} cannot be read ({error.strerror})") from error
        if found != checkpoint.checksums.get(name):
            raise _DamagedError(f"{folder / name} is damaged (its checksum does not match)")
    return checkpoint


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checksum_of(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk, so that the rename is never ahead of the content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
