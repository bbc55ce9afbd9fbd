"""Which images of a source cannot be used, and why: checked once, and kept in the run's folder."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from equimid.data.shards.source import ShardSource
from equimid.data.sources import ArraySource, Source
from equimid.errors import UnreadableImage, UserError
from equimid.files import write_json, write_text

__all__ = ["ImageCheck", "check_images", "image_check_for", "list_unreadable", "raise_if_too_many"]

Progress = Callable[[int, int], None]

_SCHEMA = 1
_AT_ONCE = 1024  # images handed to the threads together


@dataclass(frozen=True)
class ImageCheck:
    """What a check of a source found.

    source, split: of the source
    fingerprint:   of the whole source, before anything was left out
    listed:        number of images in it
    smallest_side: px; images with a shorter side are among the unreadable
    checked:       "decoded", "headers" (too many to decode), "sizes" (in memory) or "packed" (decoded when they were
                   packed: every shard is there and as long as it was)
    unreadable:    (index, description, reason) of each image to leave out
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
    *,
    smallest_side: int,
    tolerated: float = 0.05,
    decode_all_below: int = 50_000,
    progress: Progress | None = None,
    threads: int | None = None,
) -> ImageCheck:
    """Find the images that cannot be used: unreadable, or with a side below smallest_side (px, the patch).

    Every image is decoded wholly. Of more than decode_all_below images only the headers are read, since
    decoding a million files takes hours: what is damaged further in, the loader meets later.

    tolerated: largest fraction of such images, in [0, 1]
    progress:  called in this thread with (done, all) after each image
    threads:   None for one a core, at most 16

    Raises:
        UserError: no image, no readable image, or more unreadable ones than tolerated.
    """
    check = _check(source, source.fingerprint(), smallest_side, decode_all_below, progress, threads)
    raise_if_too_many(check, tolerated)
    return check


def image_check_for(
    source: Source,
    folder: Path,
    *,
    smallest_side: int,
    tolerated: float = 0.05,
    decode_all_below: int = 50_000,
    progress: Progress | None = None,
    threads: int | None = None,
) -> ImageCheck:
    """The check that is saved in the folder, if it is of the same data and smallest side; else a new one, saved.

    A new check is saved before too many unreadable images raise: the whole list is there, and a higher limit need not
    check again. A folder keeps one check, of one source.

    Of packed images, a check that found too many missing is made again: the shards may be back, and this takes
    milliseconds. A check that was good stays, so that a resumed run has the same images; the loader meets what went
    bad since.
    """
    fingerprint = source.fingerprint()
    check = ImageCheck.load(folder)
    if check is not None and check.checked == "packed" and len(check.unreadable) > tolerated * check.listed:
        check = None
    if check is None or (check.fingerprint, check.smallest_side) != (fingerprint, smallest_side):
        check = _check(source, fingerprint, smallest_side, decode_all_below, progress, threads)
        check.save(folder)
    raise_if_too_many(check, tolerated, folder / "unreadable.csv")
    return check


def _check(
    source: Source,
    fingerprint: str,
    smallest_side: int,
    decode_all_below: int,
    progress: Progress | None,
    threads: int | None,
) -> ImageCheck:
    if isinstance(source, ShardSource):
        return _check_shards(source, fingerprint, smallest_side)
    n = len(source)
    checked = "headers" if n > decode_all_below else "decoded"
    if isinstance(source, ArraySource):
        checked = "sizes"

    def reason(i: int) -> str | None:
        try:
            width, height = source.load(i).size if checked == "decoded" else source.size(i)
        except UnreadableImage as error:
            return error.reason
        return _too_small(width, height, smallest_side)

    unreadable = []
    # threads: PIL decodes without the interpreter's lock
    with ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1)) as pool:
        for start in range(0, n, _AT_ONCE):
            block = range(start, min(start + _AT_ONCE, n))
            for i, found in zip(block, pool.map(reason, block), strict=True):
                if found is not None:
                    unreadable.append((i, source.describe(i), found))
                if progress is not None:
                    progress(i + 1, n)
    return ImageCheck(
        source=source.name,
        split=source.split,
        fingerprint=fingerprint,
        listed=n,
        smallest_side=smallest_side,
        checked=checked,
        unreadable=tuple(unreadable),
    )


def _check_shards(source: ShardSource, fingerprint: str, smallest_side: int) -> ImageCheck:
    """Every image was decoded when it was packed: what is left to see is whether the shards are all there."""
    reasons = source.faults()
    for i in source.smaller_than(smallest_side):
        reasons.setdefault(i, _too_small(*source.size(i), smallest_side) or "")
    return ImageCheck(
        source=source.name,
        split=source.split,
        fingerprint=fingerprint,
        listed=len(source),
        smallest_side=smallest_side,
        checked="packed",
        unreadable=tuple((i, source.describe(i), reasons[i]) for i in sorted(reasons)),
    )


def _too_small(width: int, height: int, smallest_side: int) -> str | None:
    if min(width, height) >= smallest_side:
        return None
    return f"{width} x {height} px, smaller than a patch of {smallest_side} px"


def raise_if_too_many(
    check: ImageCheck, tolerated: float, listing: Path | None = None, remedy: str = "data.tolerated_unreadable="
) -> None:
    """Raise where no image, no readable one, or fewer than tolerated are left. listing: file of the whole list."""
    n, bad = check.listed, len(check.unreadable)
    if n == 0:
        raise UserError(f"no image found in {check.source}: expected at least one; check the path")
    examples = ", ".join(f"{description} ({reason})" for _, description, reason in check.unreadable[:3])
    whole_list = f"; the whole list: {listing}" if listing is not None else ""
    if bad == n:
        raise UserError(
            f"no readable image in {check.source}: none of {n} can be used: {examples}; give other images{whole_list}"
        )
    if bad / n > tolerated:
        enough = -(-20 * bad // n) / 20  # the fraction, rounded up to 5 %
        raise UserError(
            f"{bad} of {n} images in {check.source} cannot be used ({100 * bad / n:.1f} %, tolerated "
            f"{100 * tolerated:.1f} %): {examples}; mend or remove them, or leave them out with "
            f"{remedy}{enough}{whole_list}"
        )
