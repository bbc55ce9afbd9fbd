"""Loading in other processes: which signals they ignore, and how a user's mistake reaches the main process."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from equimid.errors import UserError

__all__ = ["leave_signals_to_the_main_process", "loaded_batches"]


def leave_signals_to_the_main_process(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a loader worker. Ctrl-C reaches the whole process group, and workers must live until
    the step is done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def loaded_batches(
    dataset: Dataset[Any],
    *,
    batch_size: int = 1,
    workers: int = 0,
    batches: Iterable[Sequence[Any]] | None = None,
    collate: Callable[[list[Any]], Any] = default_collate,
) -> Iterator[Any]:
    """Yield the batches of a map-style data set in order, or those of `batches` of keys.

    Raises:
        UserError: that an item raised. It is raised here and not in the worker: from there it comes with a traceback,
            and a worker that has raised may never end.
    """
    chosen: dict[str, Any] = {"batch_size": batch_size} if batches is None else {"batch_sampler": batches}
    for batch in DataLoader(
        _ErrorsAsItems(dataset),
        num_workers=workers,
        collate_fn=_Collate(collate),
        worker_init_fn=leave_signals_to_the_main_process,
        **chosen,
    ):
        if isinstance(batch, UserError):
            raise batch
        yield batch


class _ErrorsAsItems(Dataset[Any]):
    """The items of a data set; where one raises a UserError, the error is the item."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return error


class _Collate:
    """A class and not a closure, so that it can be pickled for a spawned worker."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        return next((item for item in items if isinstance(item, UserError)), None) or self.collate(items)
