"""`equimid pack`: a folder of images to tar shards that `open_source` opens. `format.py` describes the form.

Which image goes into which shard is a function of the data and the settings, and so is every byte written: neither the
number of workers nor a stop in between changes any.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from equimid.data.builtin import NAMED
from equimid.data.image_check import in_threads, list_unreadable, raise_if_too_many
from equimid.data.open import open_source
from equimid.data.shards.format import Pack, Part, Shard, as_options, is_packed, read_index, shard_name
from equimid.data.shards.writer import BLOCK, PackedImage, PlannedShard, packed_image, write_shard
from equimid.data.sources import FileSource, Indices, digest
from equimid.errors import UnreadableImage, UserError
from equimid.files import held
from equimid.randomness import counted_generator

__all__ = ["Packed", "pack"]

Progress = Callable[[int, int], None]

_SAMPLE = 64  # images that are encoded to learn how many fill a shard


@dataclass(frozen=True)
class Packed:
    """What `pack` left in a folder.

    Attributes:
        folder: of the shards.
        images: how many are packed.
        unreadable: how many were left out.
        shards: how many there are.
        bytes: of all shards.
        written: shards that this call wrote; the others were there.
    """

    folder: Path
    images: int
    unreadable: int
    shards: int
    bytes: int
    written: int


def pack(
    data: str,
    out: Path,
    *,
    short_side: int = 256,
    quality: int = 90,
    shard_bytes: int = 256 * 2**20,
    workers: int = 1,
    tolerated: float = 0.05,
    progress: Progress | None = None,
) -> Packed:
    """Write the images of a folder, or of a text file of paths, into shards; resume what an earlier call began.

    Args:
        data: the folder of images or the text file.
        out: the folder of shards; it is made.
        short_side: px; larger images are made so small, smaller ones left as they are; 0 leaves all as they are.
        quality: 1..95 of the JPEGs that are written; an upright RGB or grey JPEG that is small enough is copied.
        shard_bytes: length of a shard, about.
        workers: threads that decode and encode images.
        tolerated: largest fraction of unreadable images, in [0, 1].
        progress: called in this thread with (done, all) images of the shards that were missing.

    Raises:
        UserError: bad settings or data, an OUT of something else, too many unreadable images, a full disk.
    """
    settings = _checked(short_side, quality, shard_bytes, workers, tolerated)
    sources = _parts(data)
    _check_place(data, out)
    with _alone(out):
        plan = _planned(data, out, sources, settings)
        shards = list(_shards(plan, sources))
        missing = [shard for shard in shards if _finished(out, shard) is None]
        for leftover in [*out.glob(".*.writing"), *out.glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        try:
            _write(missing, settings, out, workers, progress)
        except OSError as error:
            whole = sum(_finished(out, shard) is not None for shard in shards)
            raise UserError(
                f"could not write into {out}: {error.strerror or error}; {whole} of {sum(plan.planned.values())} "
                "shards are written. Free some space, or mend what else is wrong, and run the same command again: it "
                "continues from there"
            ) from None
        return _finish(out, plan, shards, tolerated, len(missing))


# --- what, where, how


def _checked(short_side: int, quality: int, shard_bytes: int, workers: int, tolerated: float) -> dict[str, int]:
    if short_side < 0:
        raise UserError(f"the short side is {short_side} px; it must be at least 1, or 0 to leave images as they are")
    if not 1 <= quality <= 95:
        raise UserError(f"the quality is {quality}; it must lie in 1..95, 90 say")
    if shard_bytes < 1:
        raise UserError(f"a shard is {shard_bytes} bytes long; it must have at least 1, 256 MiB say")
    if workers < 1:
        raise UserError(f"{workers} workers cannot pack; give at least 1")
    if not 0 <= tolerated <= 1:
        raise UserError(f"the tolerated fraction of unreadable images is {tolerated}; it must lie in 0..1")
    return {"short_side": short_side, "quality": quality, "shard_bytes": shard_bytes}


def _parts(data: str) -> dict[str, FileSource]:
    """The images as `open_source` knows them: "train" and "test" where the folder has them, else "all"."""
    whole = None if data in NAMED else open_source(data)
    if not isinstance(whole, FileSource):
        kind = f"'{data}' is a data set known by name" if whole is None else f"{data} is packed already"
        raise UserError(f"{kind}; equimid pack takes a folder of images or a text file of paths")
    if whole.split == "all":
        return {"all": whole}
    test = open_source(data, "test")
    assert isinstance(test, FileSource)
    return {"train": whole, "test": test}


def _check_place(data: str, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; give a folder to pack into")
    place, images = out.resolve(), Path(data).expanduser().resolve()
    if images.is_dir() and (place == images or images in place.parents):
        raise UserError(f"{out} lies in {data}, which is to be packed; give a folder outside it")
    if out.is_dir() and not is_packed(out):
        others = sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
        if others:
            listed = ", ".join(others[:3]) + (" and more" if len(others) > 3 else "")
            raise UserError(f"{out} holds other files ({listed}); give a new or an empty folder to pack into")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Make the folder and lock it against a second packing; remove it where nothing was written into it."""
    made = not out.exists()
    busy = f"{out} is in use by another equimid pack; wait for it, or give another folder"
    with held(out / ".lock", busy, "give another folder to pack into"):
        try:
            yield
        finally:
            if made and [file.name for file in out.iterdir()] == [".lock"]:
                (out / ".lock").unlink()
                out.rmdir()


def _planned(data: str, out: Path, sources: dict[str, FileSource], settings: dict[str, int]) -> Pack:
    """The plan that the folder was begun with, or a new one."""
    fingerprint = digest(*(text for part, source in sources.items() for text in (part, source.fingerprint())))
    for file in (out / "pack.json", out / "packing.json"):
        if not file.exists():
            continue
        plan = Pack.load(file)
        if plan.settings != settings:
            was, now = as_options(plan.settings), as_options(settings)
            listed = ", ".join(f"{key} was {was[key]} and is now {now[key]}" for key in was if was[key] != now[key])
            raise UserError(f"{out} was begun with other settings ({listed}); give those, or another folder")
        if plan.fingerprint != fingerprint:
            raise UserError(
                f"{out} was begun with other data ({plan.data}; {data} now differs from it in its files, their lengths "
                "or labels); bring those files back, or give another folder"
            )
        return plan
    planned = {part: _shards_of(source, k, settings) for k, (part, source) in enumerate(sources.items())}
    plan = Pack(data, fingerprint, settings, next(iter(sources.values())).classes, planned, {})
    plan.save(out)
    return plan


def _order(part: int, images: int) -> Indices:
    """Neighbours in a shard are of any class, so whoever reads a shard in order reads it mixed."""
    return counted_generator(0, "pack", part).permutation(images)


def _shards_of(source: FileSource, part: int, settings: dict[str, int]) -> int:
    """How many shards of the wanted length a part fills, judged by its first images."""
    lengths, reasons = [], []
    for i in _order(part, len(source))[:_SAMPLE]:
        try:
            content, _ = packed_image(source.read(int(i)), settings["short_side"], settings["quality"])
        except UnreadableImage as error:
            reasons.append(f"{source.describe(int(i))} ({error.reason})")
            continue
        # headers of three members, paddings, the text about the image
        lengths.append(len(content) + 6 * BLOCK)
    if not lengths:
        raise UserError(
            f"no readable image in {source.name}: none of {len(reasons)} can be used: {', '.join(reasons[:3])}; give "
            "other images"
        )
    filled = round(len(source) * sum(lengths) / len(lengths) / settings["shard_bytes"])
    return min(max(filled, 1), len(source))


# --- shards


def _shards(plan: Pack, sources: dict[str, FileSource]) -> Iterator[PlannedShard]:
    for k, (part, source) in enumerate(sources.items()):
        for number, images in enumerate(np.array_split(_order(k, len(source)), plan.planned[part])):
            yield PlannedShard(number, shard_name(part, number), part, source, images)


def _finished(out: Path, shard: PlannedShard) -> dict[str, Any] | None:
    """What the index of a written shard says, or None where it must be written (again)."""
    try:
        index = read_index(out / f"{shard.name}.npz")
        length = (out / f"{shard.name}.tar").stat().st_size
    except (UserError, OSError):
        return None
    return index if length == int(index["tar"]["bytes"]) else None


def _write(
    shards: list[PlannedShard], settings: dict[str, int], out: Path, workers: int, progress: Progress | None
) -> None:
    """One shard after the other, its images decoded and encoded ahead by `workers` threads."""
    total = sum(len(shard.images) for shard in shards)

    def packed(image: tuple[FileSource, int]) -> PackedImage | UnreadableImage:
        source, number = image
        try:
            return packed_image(source.read(number), settings["short_side"], settings["quality"])
        except UnreadableImage as error:
            return error

    def counted(results: Iterator[PackedImage | UnreadableImage]) -> Iterator[PackedImage | UnreadableImage]:
        for done, result in enumerate(results, start=1):
            if progress is not None:
                progress(done, total)
            yield result

    images = ((shard.source, number) for shard in shards for number in shard.images.tolist())
    with closing(in_threads(packed, images, workers, ahead=2)) as results:
        results_counted = counted(results)
        for shard in shards:
            write_shard(out, shard, results_counted)


# --- the end


def _finish(out: Path, plan: Pack, planned: list[PlannedShard], tolerated: float, written: int) -> Packed:
    """Add up what the indices say; the folder is whole once `pack.json` is there."""
    sources = {shard.part: shard.source for shard in planned}
    shards: dict[str, list[Shard]] = {part: [] for part in sources}
    unreadable: list[tuple[str, str]] = []
    for shard in planned:
        index = _finished(out, shard)
        if index is None:
            raise UserError(f"{out}/{shard.name} went away while packing; run the same command again")
        tar = index["tar"]
        checksum = bytes(tar["sha256"]).decode()
        shards[shard.part].append(Shard(shard.name, len(index["images"]), int(tar["bytes"]), checksum))
        for file, reason in index["reasons"]:
            unreadable.append((str(shard.source.root / os.fsdecode(bytes(file))), os.fsdecode(bytes(reason))))
    unreadable.sort()
    changed = written > 0 or not (out / "pack.json").exists()
    if changed:
        list_unreadable(out, unreadable)
    listed = sum(len(source) for source in sources.values())
    raise_if_too_many(
        plan.data, listed, unreadable, tolerated, out / "unreadable.csv", remedy="--tolerated-unreadable "
    )
    if changed:
        parts = {part: Part(len(source), tuple(shards[part])) for part, source in sources.items()}
        replace(plan, parts=parts).save(out)
    (out / "packing.json").unlink(missing_ok=True)
    return Packed(
        folder=out,
        images=listed - len(unreadable),
        unreadable=len(unreadable),
        shards=len(planned),
        bytes=sum(shard.bytes for part in shards.values() for shard in part),
        written=written,
    )
