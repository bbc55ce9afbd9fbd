"""Images per second and core: files to two crops, and the crops' colours, beside torchvision's pipelines.

The plain pipeline is an ImageFolder's: PIL decodes a file once, two RandomResizedCrops (bilinear, antialiased) and
flips are taken of it, and PILToTensor leaves 8 bits. Ours gives the same crops, in law, and photometric rows with them.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lib.options import LoaderOptions
from lib.timing import Result, Row, Timing, describe_machine, paired, ratio, refuse_below
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms
from torchvision.transforms import v2

from equimid.data import (
    FileSource,
    ShardSource,
    Source,
    check_images,
    leave_signals_to_the_main_process,
    open_source,
    pack,
)
from equimid.errors import UserError
from equimid.randomness import counted_generator
from equimid.views import Key, Photometric, ViewDataset, ViewPlan, ViewsConfig, collate, draw
from equimid.views.photometric import apply
from equimid.views.plan import standard_views

__all__ = ["bench_loader"]

_CPU = torch.device("cpu")
_BATCH = 32
_Side = tuple[Dataset[Any], list[Any], Callable[[list[Any]], Any]]  # data set, its keys, what makes a batch of items
_DRAWN, _DRAWN_SIZE = 100, (467, 389)  # (width, height): ImageNet's mean
_PLAIN, _OURS, _PACKED = "torchvision, two crops", "equimid, two crops", "equimid, two crops, packed"
_COLOURS = {"PIL": "torchvision, colours, PIL", "v2": "torchvision, colours, v2", "ours": "equimid, colours"}


def bench_loader(options: LoaderOptions) -> Result:
    """Time the loaders in turn, and then the photometric operations.

    Raises:
        UserError: no such data, nothing encoded or readable in it, or a number below what makes sense.
    """
    refuse_below({"images": 1, "photometric_images": 1, "image_size": 8, "workers": 0, "repeats": 1}, vars(options))
    with _one_thread(), tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        chosen = _source(options, Path(folder))
        source = check_images(chosen, smallest_side=1, tolerated=1.0).apply(chosen)
        notes = [_said_of(source, options)]
        if len(source) < len(chosen):
            notes.append(f"{len(chosen) - len(source)} more cannot be read and are left out")
        plan = standard_views(ViewsConfig(), options.image_size, 1)
        datasets: dict[str, _Side] = {
            _PLAIN: (_Plain(source, options.image_size), list(range(len(source))), default_collate)
        }
        datasets |= {_OURS: (ViewDataset(source, plan, 0), _keys(source), collate)}
        if isinstance(source, FileSource):
            packed = _packed(source, Path(folder))
            datasets |= {_PACKED: (ViewDataset(packed, plan, 0), _keys(packed), collate)}
        else:
            notes.append("the data are packed already: every row reads them")
        loaders = {name: _loader(*parts, options.workers) for name, parts in datasets.items()}
        loading = paired({name: _reader(loader) for name, loader in loaders.items()}, options.repeats, _CPU)
        changing = paired(_colour_sides(source, plan, options), options.repeats, _CPU)
    cores = max(1, options.workers)
    rows = [_row(name, len(source), timing, cores) for name, timing in loading.items()]
    count = min(options.photometric_images, len(source))
    rows += [_row(name, count, timing, 1) for name, timing in changing.items()]
    fastest = min((_COLOURS["PIL"], _COLOURS["v2"]), key=lambda name: changing[name].median)
    ratios = {"two crops, torchvision's time / ours": ratio(loading[_PLAIN], loading[_OURS])}
    if _PACKED in loading:
        ratios["two crops, torchvision's time on files / ours packed"] = ratio(loading[_PLAIN], loading[_PACKED])
    ratios["colours, time of torchvision's faster / ours"] = ratio(changing[fastest], changing[_COLOURS["ours"]])
    return Result(
        "loader",
        "python benchmarks/bench.py loader",
        asdict(options),
        rows,
        ratios,
        notes,
        {**describe_machine(_CPU), "threads": 1},
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _row(name: str, images: int, timing: Timing, cores: int) -> Row:
    rate = images / timing.median / cores
    return {"side": name, "images": images, "images/s per core": rate, "ms per image": 1000 / rate}


# --- data


def _source(options: LoaderOptions, folder: Path) -> Source:
    """At most `images` of the data, evenly spaced; drawn photographs without data."""
    if not options.data:
        _draw_photographs(folder / "drawn", min(options.images, _DRAWN))
    source = open_source(options.data or str(folder / "drawn"))
    if not isinstance(source, FileSource | ShardSource):
        raise UserError(
            f"{options.data} holds pixels, not image files: there is nothing to decode; give a folder of images"
        )
    n = min(options.images, len(source))
    return source.take(np.linspace(0, len(source) - 1, n).round().astype(np.int64))


def _draw_photographs(folder: Path, count: int) -> None:
    """Smooth colours with noise that gives about ImageNet's bytes per image (107 kB)."""
    folder.mkdir()
    width, height = _DRAWN_SIZE
    for number in range(count):
        rng = counted_generator(0, "photograph", number)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(_DRAWN_SIZE, Image.Resampling.BICUBIC), dtype=np.float64)
        grain = rng.normal(0, 9, (height, width, 1)) + rng.normal(0, 2, (height, width, 3))
        image = Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:03}.jpg", quality=92, subsampling=0)


def _packed(source: FileSource, folder: Path) -> Source:
    listing = folder / "files.txt"
    listing.write_text("".join(f"{source.path(i).resolve()}\n" for i in range(len(source))))
    pack(str(listing), folder / "packed")
    return open_source(str(folder / "packed"))


def _said_of(source: Source, options: LoaderOptions) -> str:
    sizes = np.array([source.size(i) for i in range(len(source))])
    bytes_ = np.mean([len(source.read(i) or b"") for i in range(len(source))])
    width, height = sizes.mean(0)
    what = options.data or "drawn photographs"
    return f"{len(source)} images of {what}: mean {width:.0f} x {height:.0f} px, {bytes_ / 1000:.0f} kB"


# --- files to crops


class _Plain(Dataset[tuple[Tensor, Tensor]]):
    """torchvision's ImageFolder with two crops: its loader, its transforms."""

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        self.view = transforms.Compose(
            [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
        )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        content = self.source.read(index)
        assert content is not None
        with Image.open(io.BytesIO(content)) as file:
            image = file.convert("RGB")
        return self.view(image), self.view(image)


def _keys(source: Source) -> list[Key]:
    return [Key(0, index, posed=False) for index in range(len(source))]


def _loader(dataset: Dataset[Any], keys: list[Any], merge: Callable[[list[Any]], Any], workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_sampler=[keys[start : start + _BATCH] for start in range(0, len(keys), _BATCH)],
        num_workers=workers,
        collate_fn=merge,
        persistent_workers=workers > 0,
        worker_init_fn=leave_signals_to_the_main_process,
    )


def _reader(loader: DataLoader[Any]) -> Callable[[], None]:
    def read() -> None:
        for _ in loader:
            pass

    return read


# --- colours


def _colour_sides(source: Source, plan: ViewPlan, options: LoaderOptions) -> dict[str, Callable[[], object]]:
    """Both views' photometric operations, on crops that are there already."""
    dataset = ViewDataset(source, plan, 0)
    count = min(options.photometric_images, len(source))
    batch = collate([dataset[Key(0, index, posed=False)] for index in range(count)])
    views = [view.pixels for view in batch.crops]
    pictures = [[Image.fromarray(x.permute(1, 2, 0).numpy()) for x in view] for view in views]
    kinds = [view.photometric for view in plan.crops]
    pil = [_torchvision_colours(transforms, kind) for kind in kinds]
    second = [_torchvision_colours(v2, kind) for kind in kinds]

    def ours() -> None:
        for number, (kind, view) in enumerate(zip(kinds, views, strict=True)):
            rng = counted_generator(0, "view", number)
            rows = torch.from_numpy(np.stack([draw(kind, rng) for _ in view]))
            apply(view.float().div_(255), rows, kind)

    return {
        _COLOURS["PIL"]: lambda: [change(x) for change, view in zip(pil, pictures, strict=True) for x in view],
        _COLOURS["v2"]: lambda: [change(x) for change, view in zip(second, views, strict=True) for x in view],
        _COLOURS["ours"]: ours,
    }


def _torchvision_colours(room: Any, kind: Photometric) -> Callable[[Any], Any]:
    """The same operations with the same probabilities, of `torchvision.transforms` or its v2."""
    jitter = room.ColorJitter(kind.brightness, kind.contrast, kind.saturation, kind.hue)
    change: Callable[[Any], Any] = room.Compose(
        [
            room.RandomApply([jitter], p=kind.jitter),
            room.RandomGrayscale(p=kind.grey),
            room.RandomApply([room.GaussianBlur(kind.blur_kernel, kind.blur_sigma)], p=kind.blur),
            room.RandomSolarize(round(255 * kind.solarise_threshold), p=kind.solarise),
        ]
    )
    return change
