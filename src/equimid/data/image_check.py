"""Find the images of a source that cannot be used, and say why. The answer is kept in the run's folder."""

import csv
import io
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TypeVar

from equimid.data.shards.source import ShardSource
from equimid.data.sources import ArraySource, Source
from equimid.errors import UnreadableImage, UserError
from equimid.files import write_json, write_text

__all__ = ["ImageCheck", "check_images", "in_threads", "list_unreadable", "raise_if_too_many"]

Progress = Callable[[int, int], None]

T = TypeVar("T")
R = TypeVar("R")

_SCHEMA = 1
_DECODE_UP_TO = 50_000  # images


@dataclass(frozen=True)
class ImageCheck:
    """What a check of a source found.

    Attributes:
        source: name of the source.
        split: of the source.
        fingerprint: of the whole source, before anything was left out.
        listed: number of images in it.
        smallest_side: px; images with a shorter side are among the unreadable.
        checked: how: "decoded", "headers" (too many to decode), "sizes" (in memory) or "packed" (images were decoded
            when they were packed; the length of every shard was compared).
        unreadable: (index, description, reason) of each image to leave out.
    """

    source: str
    split: str
    fingerprint: str
    listed: int
    smallest_side: int
    checked: str
    unreadable: tuple[tuple[int, str, str], ...]

    def apply(self, source: Source) -> Source:
        """The source without the unreadable images.

        Raises:
            ValueError: it is not the source that was checked.
        """
        if len(source) != self.listed:
            raise ValueError(f"a source of {len(source)} images, but the check was of {self.listed}; check again")
        return source.without(index for index, _, _ in self.unreadable) if self.unreadable else source

    def save(self, folder: Path) -> None:
        """Write `data.json` (all of it) and `unreadable.csv` (file, reason)."""
        folder.mkdir(parents=True, exist_ok=True)
        list_unreadable(folder, ((description, reason) for _, description, reason in self.unreadable))
        counts = {"usable": self.listed - len(self.unreadable)}
        write_json(folder / "data.json", {"schema": _SCHEMA, **counts, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The saved check; None where there is none, or it is damaged or of another version."""
        try:
            entry = json.loads((folder / "data.json").read_text())
            if entry.pop("schema") != _SCHEMA:
                return None
            del entry["usable"]
            unreadable = tuple((int(i), str(d), str(r)) for i, d, r in entry.pop("unreadable"))
            return cls(**entry, unreadable=unreadable)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def list_unreadable(folder: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write `unreadable.csv` (file, reason)."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("file", "reason"), *rows])
    write_text(folder / "unreadable.csv", text.getvalue())


def check_images(
    source: Source,
    folder: Path | None = None,
    *,
    smallest_side: int,
    tolerated: float = 0.05,
    progress: Progress | None = None,
) -> ImageCheck:
    """Find the images that cannot be used: unreadable, or with a side below `smallest_side`.

    Every image is decoded. Of more than 50,000 images only the headers are read, since decoding a million files takes
    hours; the loader finds the other damaged files during training.

    With `folder`, the check is saved there, also where it raises: so the whole list is there, and a higher limit needs
    no new check. A folder keeps one check of one source: a saved one of the same data and smallest side is returned,
    so that a resumed run has the same images. Only where it found too many missing images of shards it is made again:
    the shards may be back, and this takes milliseconds.

    Args:
        folder: where the check is kept; None = nowhere.
        smallest_side: px, the patch.
        tolerated: largest fraction of images that cannot be used, in [0, 1].
        progress: called in this thread with (done, all) after each image.

    Raises:
        UserError: no image, no readable image, or more unreadable ones than tolerated.
    """
    fingerprint = source.fingerprint()
    check = None if folder is None else ImageCheck.load(folder)
    if check is not None and check.checked == "packed" and len(check.unreadable) > tolerated * check.listed:
        check = None
    if check is None or (check.fingerprint, check.smallest_side) != (fingerprint, smallest_side):
        check = _check(source, fingerprint, smallest_side, progress)
        if folder is not None:
            check.save(folder)
    unreadable = [(description, reason) for _, description, reason in check.unreadable]
    listing = None if folder is None else folder / "unreadable.csv"
    raise_if_too_many(check.source, check.listed, unreadable, tolerated, listing)
    return check


def _check(source: Source, fingerprint: str, smallest_side: int, progress: Progress | None) -> ImageCheck:
    count = len(source)
    if isinstance(source, ShardSource):
        checked = "packed"
    elif isinstance(source, ArraySource):
        checked = "sizes"
    else:
        checked = "headers" if count > _DECODE_UP_TO else "decoded"

    def reason(i: int) -> str:
        try:
            width, height = source.load(i).size if checked == "decoded" else source.size(i)
        except UnreadableImage as error:
            return error.reason
        if min(width, height) >= smallest_side:
            return ""
        return f"{width} x {height} px, smaller than a patch of {smallest_side} px"

    reasons: dict[int, str] = {}
    if isinstance(source, ShardSource):  # the index has the sizes
        reasons = {i: reason(i) for i in source.smaller_than(smallest_side)} | source.faults()
    else:
        for i, text in enumerate(in_threads(reason, range(count), min(16, os.cpu_count() or 1))):
            if text:
                reasons[i] = text
            if progress is not None:
                progress(i + 1, count)
    return ImageCheck(
        source=source.name,
        split=source.split,
        fingerprint=fingerprint,
        listed=count,
        smallest_side=smallest_side,
        checked=checked,
        unreadable=tuple((i, source.describe(i), text) for i, text in sorted(reasons.items())),
    )


def in_threads(function: Callable[[T], R], items: Iterable[T], threads: int, ahead: int = 16) -> Generator[R]:
    """Yield function(item) of every item, in order, computed ahead in threads: PIL does not hold Python's lock.

    Close it (`contextlib.closing`) where not all results are taken. At most `ahead` results of each thread wait.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def raise_if_too_many(
    source: str,
    listed: int,
    unreadable: Sequence[tuple[str, str]],
    tolerated: float,
    listing: Path | None = None,
    remedy: str = "data.tolerated_unreadable=",
) -> None:
    """Raise where there is no image, no readable one, or a larger fraction of unreadable ones than tolerated.

    Args:
        unreadable: (description, reason) of those among the `listed` images of `source`.
        listing: the file that lists all of them.
        remedy: how a user types a higher limit.
    """
    bad = len(unreadable)
    if listed == 0:
        raise UserError(f"no image found in {source}: expected at least one; check the path")
    examples = ", ".join(f"{description} ({reason})" for description, reason in unreadable[:3])
    whole_list = f"; the whole list: {listing}" if listing is not None else ""
    if bad == listed:
        raise UserError(
            f"no readable image in {source}: none of {listed} can be used: {examples}; give other images{whole_list}"
        )
    if bad / listed > tolerated:
        enough = -(-20 * bad // listed) / 20  # the fraction, rounded up to 5 %
        raise UserError(
            f"{bad} of {listed} images in {source} cannot be used ({100 * bad / listed:.1f} %, tolerated "
            f"{100 * tolerated:.1f} %): {examples}; mend or remove them, or leave them out with "
            f"{remedy}{enough}{whole_list}"
        )
