"""Tensors in one or several safetensors files, by name and by rows: what a checkpoint of any number of ranks is.

A table says of every tensor its shape and which file holds which rows:
{"student.norm.weight": {"shape": [384], "rows": {"model-00000-of-00002.safetensors": [0, 192], ...}}}.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from equimid.engine.sharding import own_part, rows_of

__all__ = ["Table", "TensorFiles", "shard_name", "table_of", "write_tensors"]

Table = dict[str, dict[str, Any]]


def shard_name(kind: str, rank: int, ranks: int) -> str:
    """The file of one rank."""
    return f"{kind}-{rank:05d}-of-{ranks:05d}.safetensors"


def write_tensors(tensors: Mapping[str, Tensor], file: Path, *, rank: int = 0) -> None:
    """Write this rank's rows of sharded tensors; the first rank writes those that are not sharded too.

    Raises:
        OSError, SafetensorError: the disk refused.
    """
    own = {name: own_part(value) for name, value in tensors.items() if rank == 0 or isinstance(value, DTensor)}
    save_file({name: part.detach().cpu().contiguous() for name, part in own.items()}, file)


def table_of(tensors: Mapping[str, Tensor], kind: str, ranks: int) -> Table:
    """Where `write_tensors` of every rank put them."""
    table: Table = {}
    for name, value in tensors.items():
        holders = range(ranks) if isinstance(value, DTensor) else range(1)
        count = value.shape[0] if value.ndim else 0
        rows = {shard_name(kind, r, ranks): list(rows_of(count, len(holders), r)) for r in holders}
        table[name] = {"shape": list(value.shape), "rows": rows}
    return table


class TensorFiles:
    """Reads tensors from files; a context, since it keeps them open.

    Args:
        table: None = one file `name` that holds everything whole.
    """

    def __init__(self, folder: Path, name: str, table: Table | None = None) -> None:
        self.folder, self.name, self.given = folder, name, table
        self.stack = ExitStack()
        self.files: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.table = self.given if self.given is not None else self._whole_file()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def like(self, name: str, target: object) -> Tensor:
        """The tensor as the target is: this rank's rows where that is sharded, else whole, on the CPU."""
        shape = self.table[name]["shape"]
        if not (isinstance(target, DTensor) and list(target.shape) == shape):
            return self._rows(name, 0, shape[0] if shape else 0)
        mesh = target.device_mesh
        first, last = rows_of(shape[0], mesh.size(), mesh.get_local_rank())
        own = self._rows(name, first, last).to(target.device)
        whole: Tensor = DTensor.from_local(
            own, mesh, target.placements, run_check=False, shape=target.shape, stride=target.stride()
        )
        return whole

    def _rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows first to last, and of a tensor without dimensions everything."""
        entry = self.table[name]
        if not entry["shape"]:
            scalar: Tensor = self._file(next(iter(entry["rows"]))).get_tensor(name)
            return scalar
        parts = []
        for file, (begin, end) in entry["rows"].items():
            low, high = max(first, begin), min(last, end)
            if low < high:
                parts.append(self._file(file).get_slice(name)[low - begin : high - begin])
        if not parts:  # no row at all, of the right width and type
            parts = [self._file(next(iter(entry["rows"]))).get_slice(name)[:0]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _whole_file(self) -> Table:
        file = self._file(self.name)
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return {
            name: {"shape": list(shape), "rows": {self.name: [0, shape[0] if shape else 0]}}
            for name, shape in shapes.items()
        }

    def _file(self, name: str) -> Any:
        if name not in self.files:
            self.files[name] = self.stack.enter_context(safe_open(self.folder / name, framework="pt"))
        return self.files[name]
