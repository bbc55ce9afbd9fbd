"""Checkpoints: a folder of safetensors and JSON with checksums, written beside and renamed; nothing is unpickled.

checkpoints/step-00000120/model.safetensors      the task's state
                          optimizer.safetensors  "<parameter number>.<name>" tensors
                          state.json             step, checksums, optimizer settings, what the run needs

Under FSDP every rank r of W writes its own rows, model-0000r-of-0000W.safetensors and optimizer-...: the rows of a
tensor are those of all files in the order of their names. Either kind resumes on any number of ranks under either
strategy.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from equimid.distributed import any_rank, gather_detached, rank, sum_detached, world_size
from equimid.engine.sharding import is_sharded, own_part, rows_of
from equimid.errors import UserError
from equimid.files import write_json

__all__ = ["Checkpoint", "agreed_checkpoint", "discard_checkpoint", "latest_checkpoint", "save_checkpoint"]

logger = logging.getLogger("equimid")

_KINDS = ("model", "optimizer")


class _DamagedError(Exception):
    """A checkpoint that cannot be used; names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on the disk.

    Attributes:
        folder: its own folder, step-00000120 say.
        step: steps done.
        run: what the run stored beside the tensors (data fingerprint and the like).
        checksums: SHA-256 of every file of tensors, by name.
        param_groups: the optimizer's settings.
    """

    folder: Path
    step: int
    run: dict[str, Any]
    checksums: dict[str, str]
    param_groups: list[dict[str, Any]]

    @property
    def identity(self) -> str:
        """Short hash of the weights, for records."""
        sums = {file.name: self.checksums[file.name] for file in self._files("model")}
        return (sums.get("model.safetensors") or _checksum_of(sums))[:16]

    def restore(self, task: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Load weights and, if given, the optimizer; strict, bit for bit.

        Where the task is sharded, a rank reads its own rows only. The optimizer is that of the task's parameters as
        they are now: sharding makes new ones.
        """
        targets = task.state_dict()
        with _open_tensors(self._files("model")) as tensors:
            task.load_state_dict({name: _read(name, files, targets.get(name)) for name, files in tensors.items()})
        if optimizer is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        with _open_tensors(self._files("optimizer")) as tensors:
            for key, files in tensors.items():
                number, name = key.split(".", 1)
                state.setdefault(int(number), {})[name] = _read(key, files, parameters[int(number)])
        optimizer.load_state_dict({"state": state, "param_groups": self.param_groups})

    def _files(self, kind: str) -> list[Path]:
        return [self.folder / name for name in sorted(self.checksums) if name.startswith(kind)]


def save_checkpoint(
    folder: Path,
    step: int,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: dict[str, Any],
    keep: int,
    device: torch.device | str = "cpu",
) -> Path:
    """Write the checkpoint of `step` into `folder`; afterwards keep the last `keep`.

    One rank calls it. Of a sharded task all ranks call it, each writes its own rows, and the folder is on storage that
    they share; the checkpoint has its name only when all of them are done.

    Args:
        device: where the small messages between ranks travel.

    Raises:
        UserError: the disk refused, on any rank; earlier checkpoints are untouched.
    """
    sharded = is_sharded(task)
    me, ranks = (rank(), world_size()) if sharded else (0, 1)
    beside, final = folder / f".writing-{step:08d}", _place(folder, step)
    state = optimizer.state_dict()
    moments = {f"{number}.{name}": value for number, each in state["state"].items() for name, value in each.items()}
    names = [[_file_name(kind, r, ranks if sharded else 0) for kind in _KINDS] for r in range(ranks)]
    try:
        with _on_all_or_none(sharded, device):
            if me == 0:
                for leftover in folder.glob(".writing-*"):
                    shutil.rmtree(leftover, ignore_errors=True)
                beside.mkdir(parents=True)
        with _on_all_or_none(sharded, device):
            for name, tensors in zip(names[me], (task.state_dict(), moments), strict=True):
                write_tensors(tensors, beside / name, rank=me)
            own = b"".join(_checksum(beside / name, sync=True) for name in names[me])
        sums = torch.frombuffer(bytearray(own), dtype=torch.uint8).view(1, len(_KINDS), -1)
        sums = gather_detached(sums.to(device)).cpu() if sharded else sums
        with _on_all_or_none(sharded, device):
            if me == 0:
                checksums = {names[r][k]: bytes(sums[r, k].tolist()).hex() for r in range(ranks) for k in range(2)}
                entry = {"step": step, "checksums": checksums, "param_groups": state["param_groups"], "run": run}
                write_json(beside / "state.json", {**entry, "checksum": _checksum_of(entry)})
                _finish(beside, final, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        older = _steps(folder)
        kept = f"the checkpoint of step {_number(older[0])} is still valid" if older else "there is no older checkpoint"
        raise UserError(
            f"could not write the checkpoint of step {step} into {folder}: {error}; {kept}. "
            "Free some space and run the same command again"
        ) from error
    return final


def agreed_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint | None:
    """`latest_checkpoint`, the same one on all ranks: the first rank finds and verifies it, the others open it.

    Raises:
        UserError: on all ranks, if all checkpoints are damaged or a rank does not see the folder.
    """
    if world_size() == 1:
        return latest_checkpoint(folder)
    checkpoint, refused = None, None
    if rank() == 0:
        try:
            checkpoint = latest_checkpoint(folder)
        except UserError as error:
            refused = error
    if any_rank(refused is not None, device):
        raise refused or UserError(f"no checkpoint in {folder} is whole; the first process names them")
    # 0 = there is none
    answer = int(sum_detached(torch.tensor(checkpoint.step + 1 if checkpoint else 0, device=device)))
    unseen: _DamagedError | None = None
    if rank() and answer:
        try:
            checkpoint = _described(_place(folder, answer - 1))
        except _DamagedError as error:
            unseen = error
    if any_rank(unseen is not None, device):
        reason = unseen or "another process does not see it"
        raise UserError(
            f"the checkpoint of step {answer - 1} in {folder} is not seen by every process ({reason}); the run's "
            "folder must lie on storage that all nodes share"
        )
    return checkpoint


def discard_checkpoint(folder: Path, step: int) -> None:
    """Remove the checkpoint of `step`: its weights turned out to be of no use."""
    shutil.rmtree(_place(folder, step), ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are whole; None where none was ever written. Damaged ones are named.

    Raises:
        UserError: there are checkpoints, and all of them are damaged.
    """
    damage = []
    for candidate in _steps(folder):
        try:
            return _verified(candidate)
        except _DamagedError as error:
            damage.append(str(error))
            logger.warning("%s; falling back to the checkpoint before it", error)
    if damage:
        raise UserError(f"no checkpoint in {folder} is whole: {'; '.join(damage)}. Choose a new --out folder")
    return None


# --- tensors


def _file_name(kind: str, rank: int, ranks: int) -> str:
    """The file of one rank; of an unsharded task, where `ranks` is 0, the only file."""
    return f"{kind}-{rank:05d}-of-{ranks:05d}.safetensors" if ranks else f"{kind}.safetensors"


def write_tensors(tensors: Mapping[str, Tensor], file: Path, *, rank: int = 0) -> None:
    """Write this rank's rows of sharded tensors; the first rank writes those that are not sharded too.

    Raises:
        OSError, SafetensorError: the disk refused.
    """
    own = {name: own_part(value) for name, value in tensors.items() if rank == 0 or isinstance(value, DTensor)}
    save_file({name: part.detach().cpu().contiguous() for name, part in own.items()}, file)


@contextmanager
def _open_tensors(files: list[Path]) -> Iterator[dict[str, list[Any]]]:
    """{name of a tensor: open files that have rows of it, in order}."""
    with ExitStack() as stack:
        tensors: dict[str, list[Any]] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            for name in opened.keys():  # noqa: SIM118
                tensors.setdefault(name, []).append(opened)
        yield tensors


def _read(name: str, files: list[Any], target: object) -> Tensor:
    """The tensor as the target is: this rank's rows where that is sharded, else whole, on the CPU."""
    slices = [file.get_slice(name) for file in files]
    shapes = [part.get_shape() for part in slices]
    if not shapes[0]:
        number: Tensor = files[0].get_tensor(name)
        return number
    count = sum(shape[0] for shape in shapes)
    if not (isinstance(target, DTensor) and [count, *shapes[0][1:]] == list(target.shape)):
        return _rows(slices, 0, count)
    mesh = target.device_mesh
    own = _rows(slices, *rows_of(count, mesh.size(), mesh.get_local_rank())).to(target.device)
    whole: Tensor = DTensor.from_local(
        own, mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
    )
    return whole


def _rows(slices: list[Any], first: int, last: int) -> Tensor:
    """Rows first to last of the slices, one after the other."""
    parts, begin = [], 0
    for part in slices:
        count = part.get_shape()[0]
        low, high = max(first - begin, 0), min(last - begin, count)
        if low < high:
            parts.append(part[low:high])
        begin += count
    if not parts:  # no row at all, of the right width and type
        parts = [slices[0][:0]]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


# --- folders


@contextmanager
def _on_all_or_none(sharded: bool, device: torch.device | str) -> Iterator[None]:
    """The block ends well on all ranks; where the disk of one of them refused, it raises on all."""
    refused = None
    try:
        yield
    except (OSError, SafetensorError) as error:
        refused = error
    if any_rank(refused is not None, device) if sharded else refused is not None:
        raise refused or OSError("another process of the run could not write its part")


def _finish(beside: Path, final: Path, keep: int) -> None:
    if final.exists():
        shutil.rmtree(final)
    os.replace(beside, final)
    handle = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    for old in _steps(final.parent)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def _verified(folder: Path) -> Checkpoint:
    checkpoint = _described(folder)
    for name, expected in checkpoint.checksums.items():
        try:
            checksum = _checksum(folder / name).hex()
        except OSError as error:
            raise _DamagedError(f"{folder / name} cannot be read ({error.strerror})") from error
        if checksum != expected:
            raise _DamagedError(f"{folder / name} is damaged (its checksum does not match)")
    return checkpoint


def _described(folder: Path) -> Checkpoint:
    """As its state.json says, whose own checksum is right; the other files are not read."""
    try:
        entry = json.loads((folder / "state.json").read_text())
        if entry.pop("checksum") != _checksum_of(entry) or entry["step"] != _number(folder):
            raise ValueError("its checksum does not match")
        checkpoint = Checkpoint(folder, entry["step"], entry["run"], entry["checksums"], entry["param_groups"])
        if not all(checkpoint._files(kind) for kind in _KINDS):
            raise ValueError("a file has no checksum")
        return checkpoint
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{folder / 'state.json'} is damaged ({error})") from error


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 8), reverse=True)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _checksum(file: Path, *, sync: bool = False) -> bytes:
    """SHA-256; with `sync` the content is forced to the disk too, so that the rename is never ahead of it."""
    with file.open("rb") as stream:
        if sync:
            os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").digest()


def _checksum_of(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
