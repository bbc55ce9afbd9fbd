"""All cases by part; each is a function that finds its content in a folder of its own."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from golden_runs import listing, measuring, packing, table, training
from golden_runs.images import FOLDERS, draw_all, folder_hash
from golden_runs.process import isolated

__all__ = ["all_cases"]

Case = Callable[[], Any]


def all_cases(work: Path) -> Mapping[str, Mapping[str, Case]]:
    """{part: {case: ...}} in the empty folder `work`, into which images are drawn now; each may be called once."""
    images = work / "images"
    draw_all(images)

    def case(function: Callable[..., Any], *arguments: Any) -> Callable[[Path], Case]:
        return lambda folder: partial(
            isolated, function, *arguments, folder=folder, given=[images / name for name in FOLDERS]
        )

    def measured(data: str, words: list[str]) -> Callable[[Path], Case]:
        return lambda folder: partial(_measured, images, folder, data, words)

    parts: dict[str, dict[str, Callable[[Path], Case]]] = {
        "images": {"drawn": lambda _: lambda: {name: folder_hash(images / name) for name in FOLDERS}},
        "training": {
            **{name: case(_trained, *run) for name, run in table.TRAININGS.items()},
            table.PACKED: case(_trained_on_shards, *table.PACKED_TRAINING),
        },
        "processes": {name: case(_trained_by_several, *run) for name, run in table.PROCESSES.items()},
        "measurements": {
            table.ROUTINE: lambda folder: partial(_routine, images, folder),
            **{name: measured(*words) for name, words in table.MEASUREMENTS.items()},
        },
        "packing": {
            **{name: case(packing.pack, name, "shards") for name in table.PACK},
        },
        "names": {"public": case(listing.public_names)},
        "recipes": {"all": case(listing.recipes)},
        "commands": {"all": case(listing.commands)},
    }
    return {
        part: {name: make(work / part / _file_name(name)) for name, make in cases.items()}
        for part, cases in parts.items()
    }


def _trained(recipe: str, settings: list[str], data: str = "files") -> dict[str, Any]:
    training.train(recipe, "run", [*table.ONE, *settings, f"{table.DATA}={data}"])
    return training.found_in("run")


def _trained_on_shards(recipe: str, settings: list[str]) -> dict[str, Any]:
    packing.pack("large", "shards")
    return _trained(recipe, settings, "shards")


def _trained_by_several(recipe: str, settings: list[str]) -> dict[str, Any]:
    training.train_as_program(recipe, "run", [*table.TWO, *settings, f"{table.DATA}=files"])
    return training.found_in("run")


def _routine(images: Path, folder: Path) -> dict[str, Any]:
    return measuring.records_of(_run(images, folder.parent))


def _measured(images: Path, folder: Path, data: str, words: list[str]) -> Any:
    given = [images / data.split("/")[0], images / "labelled", _run(images, folder.parent)]
    return isolated(measuring.measure, data, words, folder=folder, given=list(dict.fromkeys(given)))


def _run(images: Path, part: Path) -> Path:
    """The run that is measured; trained when the first case asks for it."""
    folder = part / "trained"
    if not folder.exists():
        isolated(measuring.pretrain_measured, folder=folder, given=[images / "labelled"])
    return folder / "run"


def _file_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text)
