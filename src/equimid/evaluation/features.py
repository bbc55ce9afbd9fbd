"""Frozen features of labelled images, computed once and shared by the probes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from equimid.backbones import Backbone, Features
from equimid.data import Source, leave_signals_to_the_main_process
from equimid.errors import UnreadableImage, UserError

__all__ = ["FeatureTable", "Preprocessing", "embed", "image_batches", "pixels"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FeatureTable:
    """Features (n, D) float32 and labels (n,) of the images of one split."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side to size / crop, cut the centre, normalise: timm's keys of `pretrained_cfg`."""

    size: int
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(pretrained_cfg: Mapping[str, Any]) -> "Preprocessing":
        """What a backbone was trained for."""
        return Preprocessing(
            int(pretrained_cfg["input_size"][-1]),
            float(pretrained_cfg.get("crop_pct") or 1.0),
            tuple(pretrained_cfg["mean"]),
            tuple(pretrained_cfg["std"]),
        )

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image to (3, size, size), normalised; bicubic."""
        side = min(image.size) * self.crop  # pixels of the image that the crop shows
        left, top = (image.width - side) / 2, (image.height - side) / 2
        cut = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        x = torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


class _Images(Dataset[Tensor]):
    def __init__(self, source: Source, indices: Sequence[int], preprocessing: Preprocessing) -> None:
        self.source, self.indices, self.preprocessing = source, indices, preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Tensor:
        index = self.indices[number]
        try:
            return self.preprocessing(self.source.load(index))
        except UnreadableImage as error:
            raise UserError(
                f"{self.source.describe(index)} cannot be read ({error.reason}); remove it and evaluate again"
            ) from None


def image_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 64,
    workers: int = 0,
    indices: npt.NDArray[np.int64] | None = None,
) -> Iterator[Tensor]:
    """Batches (b, 3, S, S) in order."""
    chosen = np.arange(len(source)) if indices is None else indices
    yield from DataLoader(
        _Images(source, chosen.tolist(), preprocessing),
        batch_size=batch_size,
        num_workers=workers,
        worker_init_fn=leave_signals_to_the_main_process,
    )


@torch.inference_mode()
def embed(
    backbone: Backbone,
    source: Source,
    *,
    device: torch.device,
    workers: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> FeatureTable:
    """Final CLS embeddings of a labelled source, in eval mode.

    Raises:
        ValueError: the source has no labels.
    """
    preprocessing = Preprocessing.of(backbone.pretrained_cfg)
    backbone = backbone.to(device).eval()

    def features(images: Tensor) -> Tensor:
        found: Features = backbone(images.to(device))
        return found.cls.float().cpu()

    return _table(source, preprocessing, features, workers, batch_size, progress)


def pixels(source: Source, *, workers: int = 0, progress: Progress | None = None) -> FeatureTable:
    """The reference without a network: the pixels at 32 px, each channel in [-1, 1]."""
    preprocessing = Preprocessing(32, 1.0, (0.5,) * 3, (0.5,) * 3)
    return _table(source, preprocessing, lambda images: images.flatten(1), workers, 256, progress)


def _table(
    source: Source,
    preprocessing: Preprocessing,
    features: Callable[[Tensor], Tensor],
    workers: int,
    batch_size: int,
    progress: Progress | None,
) -> FeatureTable:
    if source.labels is None:
        raise ValueError(f"{source.name} has no labels")
    parts, done = [], 0
    for images in image_batches(source, preprocessing, batch_size=batch_size, workers=workers):
        parts.append(features(images))
        done += len(images)
        if progress:
            progress(done, len(source))
    return FeatureTable(torch.cat(parts), torch.as_tensor(source.labels))
