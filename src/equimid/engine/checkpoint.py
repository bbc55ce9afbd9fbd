"""Checkpoints: a folder of safetensors and JSON with checksums, written beside and renamed; nothing is unpickled.

checkpoints/step-00000120/model.safetensors      the task's state
                          optimizer.safetensors  "<parameter number>.<name>" tensors
                          state.json             step, checksums, optimizer settings, what the run needs

Under FSDP every rank r of W writes its own rows, model-0000r-of-0000W.safetensors and optimizer-...; state.json then
also holds which file has which rows. Either kind resumes on any number of ranks under either strategy.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from equimid.distributed import any_rank, gather_detached, rank, sum_detached, world_size
from equimid.engine.tensors import Table, TensorFiles, shard_name, table_of, write_tensors
from equimid.errors import UserError

__all__ = [
    "Checkpoint",
    "agreed_checkpoint",
    "discard_checkpoint",
    "latest_checkpoint",
    "save_checkpoint",
    "save_sharded_checkpoint",
]

logger = logging.getLogger("equimid")

T = TypeVar("T")
_KINDS = ("model", "optimizer")


class _DamagedError(Exception):
    """A checkpoint that cannot be used; names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    step:   steps done
    run:    what the run stored beside the tensors (data fingerprint and the like)
    tables: of sharded files, which one has which rows; see `engine/tensors.py`
    """

    folder: Path
    step: int
    run: dict[str, Any]
    checksums: dict[str, str]
    param_groups: list[dict[str, Any]]
    tables: dict[str, Table] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Short hash of the weights, for records."""
        if not self.tables:
            return self.checksums["model.safetensors"][:16]
        return _checksum_of({name: sum_ for name, sum_ in self.checksums.items() if name.startswith("model-")})[:16]

    def restore(self, task: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load weights and, if given, the optimizer; strict, bit for bit.

        Where the task is sharded, a rank reads its own rows only. The optimizer is that of the task's parameters as
        they are now: sharding makes new ones.
        """
        targets = task.state_dict()
        with self._files("model") as files:
            task.load_state_dict({name: files.like(name, targets.get(name)) for name in files.table})
        if optimizer is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        with self._files("optimizer") as files:
            for key in files.table:
                number, name = key.split(".", 1)
                state.setdefault(int(number), {})[name] = files.like(key, parameters[int(number)])
        optimizer.load_state_dict({"state": state, "param_groups": self.param_groups})

    def _files(self, kind: str) -> TensorFiles:
        return TensorFiles(self.folder, f"{kind}.safetensors", self.tables.get(kind))


def save_checkpoint(
    folder: Path, step: int, task: nn.Module, optimizer: torch.optim.Optimizer, run: dict[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder`; afterwards keep the last `keep`. One rank calls it.

    Raises:
        UserError: the disk refused; earlier checkpoints are untouched.
    """
    beside, final = _places(folder, step)
    try:
        _begin(folder, beside)
        parts, settings = _state(task, optimizer)
        for kind, tensors in zip(_KINDS, parts, strict=True):
            write_tensors(tensors, beside / f"{kind}.safetensors")
            _sync(beside / f"{kind}.safetensors")
        checksums = {f"{kind}.safetensors": _checksum(beside / f"{kind}.safetensors") for kind in _KINDS}
        _finish(beside, final, {"step": step, "checksums": checksums, "param_groups": settings, "run": run}, keep)
    except (OSError, SafetensorError) as error:
        raise _could_not_write(folder, step, error) from error
    return final


def save_sharded_checkpoint(
    folder: Path,
    step: int,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: dict[str, Any],
    keep: int,
    device: torch.device | str = "cpu",
) -> Path:
    """The same of a sharded task. All ranks call it, each writes its own rows; the folder is on storage that they
    share. The checkpoint has its name only when all of them are done.

    Args:
        device: where the ranks' small messages travel.

    Raises:
        UserError: the disk refused one of them (all of them raise); earlier checkpoints are untouched.
    """
    me, ranks = rank(), world_size()
    beside, final = _places(folder, step)
    parts, settings = _state(task, optimizer)
    names = [shard_name(kind, me, ranks) for kind in _KINDS]

    def write() -> bytes:
        for name, tensors in zip(names, parts, strict=True):
            write_tensors(tensors, beside / name, rank=me)
            _sync(beside / name)
        return b"".join(bytes.fromhex(_checksum(beside / name)) for name in names)

    def finish(sums: list[bytes]) -> None:
        checksums = {
            shard_name(kind, r, ranks): sums[r][32 * place : 32 * (place + 1)].hex()
            for r in range(ranks)
            for place, kind in enumerate(_KINDS)
        }
        tables = {kind: table_of(tensors, kind, ranks) for kind, tensors in zip(_KINDS, parts, strict=True)}
        entry = {"step": step, "checksums": checksums, "param_groups": settings, "run": run, "tables": tables}
        _finish(beside, final, entry, keep)

    try:
        _on_all(lambda: _begin(folder, beside) if me == 0 else None, device)
        own = _on_all(write, device)
        sums = gather_detached(torch.frombuffer(bytearray(own), dtype=torch.uint8)[None].to(device)).cpu()
        _on_all(lambda: finish([bytes(row.tolist()) for row in sums]) if me == 0 else None, device)
    except (OSError, SafetensorError) as error:
        raise _could_not_write(folder, step, error) from error
    return final


def agreed_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """`latest_checkpoint`, the same one on all ranks: the first rank looks and verifies, the others open what it found.

    Raises:
        UserError: on all ranks, if all checkpoints are damaged or a rank does not see the folder.
    """
    if world_size() == 1:
        return latest_checkpoint(folder)
    checkpoint, refused, answer = None, None, 0
    if rank() == 0:
        try:
            checkpoint = latest_checkpoint(folder)
            answer = 0 if checkpoint is None else checkpoint.step + 1
        except UserError as error:
            refused, answer = error, -1
    answer = int(sum_detached(torch.tensor(answer, device=device)))
    if answer < 0:
        raise refused or UserError(f"no checkpoint in {folder} is whole; the first process names them")
    unseen: _DamagedError | None = None
    if rank() and answer:
        try:
            checkpoint = _described(_places(folder, answer - 1)[1])
        except _DamagedError as error:
            unseen = error
    if any_rank(unseen is not None, device):
        unseen_by = f"{unseen}" if unseen else "another process does not see it"
        raise UserError(
            f"the checkpoint of step {answer - 1} in {folder} is not seen by every process ({unseen_by}); the run's "
            "folder must lie on storage that all nodes share"
        )
    return checkpoint


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


def _on_all(act: Callable[[], T], device: torch.device | str) -> T:
    """Do it, and continue only if no rank's disk refused."""
    result, refused = None, None
    try:
        result = act()
    except (OSError, SafetensorError) as error:
        refused = error
    if any_rank(refused is not None, device):
        raise refused or OSError("another process of the run could not write its part")
    return result  # type: ignore[return-value]


def _places(folder: Path, step: int) -> tuple[Path, Path]:
    """Where it is written, and its name when it is whole."""
    return folder / f".writing-{step:08d}", folder / f"step-{step:08d}"


def _begin(folder: Path, beside: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir()


def _state(task: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[list[dict[str, Tensor]], list[Any]]:
    """Tensors of the task and of the optimizer by name, and the optimizer's settings."""
    state = optimizer.state_dict()
    tensors = {f"{number}.{name}": value for number, values in state["state"].items() for name, value in values.items()}
    return [task.state_dict(), tensors], state["param_groups"]


def _finish(beside: Path, final: Path, entry: dict[str, Any], keep: int) -> None:
    (beside / "state.json").write_text(json.dumps({**entry, "checksum": _checksum_of(entry)}, indent=1))
    _sync(beside / "state.json")
    if final.exists():
        shutil.rmtree(final)
    os.replace(beside, final)
    _sync(final.parent)
    for old in _steps(final.parent)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def _could_not_write(folder: Path, step: int, error: Exception) -> UserError:
    """What to tell; what was written is removed."""
    shutil.rmtree(_places(folder, step)[0], ignore_errors=True)
    older = _steps(folder)
    kept = f"the checkpoint of step {_number(older[0])} is still valid" if older else "there is no older checkpoint"
    return UserError(
        f"could not write the checkpoint of step {step} into {folder}: {error}; {kept}. "
        "Free some space and run the same command again"
    )


def _verified(folder: Path) -> Checkpoint:
    checkpoint = _described(folder)
    for name, expected in checkpoint.checksums.items():
        try:
            found = _checksum(folder / name)
        except OSError as error:
            raise _DamagedError(f"{folder / name} cannot be read ({error.strerror})") from error
        if found != expected:
            raise _DamagedError(f"{folder / name} is damaged (its checksum does not match)")
    return checkpoint


def _described(folder: Path) -> Checkpoint:
    """As its state.json says, whose own checksum is right; the files are not looked at."""
    try:
        entry = json.loads((folder / "state.json").read_text())
        if entry.pop("checksum") != _checksum_of(entry) or entry["step"] != _number(folder):
            raise ValueError("its checksum does not match")
        names = {
            file for table in entry.get("tables", {}).values() for found in table.values() for file in found["rows"]
        }
        if not (names or {f"{kind}.safetensors" for kind in _KINDS}) <= set(entry["checksums"]):
            raise ValueError("a file has no checksum")
        return Checkpoint(
            folder, entry["step"], entry["run"], entry["checksums"], entry["param_groups"], entry.get("tables", {})
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{folder / 'state.json'} is damaged ({error})") from error


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
