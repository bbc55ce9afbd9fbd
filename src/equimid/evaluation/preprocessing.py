"""Frozen features of labelled images, computed once and shared by the probes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.backbones import Encoder
from equimid.data import Source, loaded_batches
from equimid.errors import UnreadableImage, UserError
from equimid.features import Features

__all__ = ["FeatureTable", "Pixels", "Preprocessing", "Progress", "image_batches", "load_image"]

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
        return self.normalise(cut)

    def normalise(self, image: Image.Image) -> Tensor:
        """An RGB image to (3, H, W), its own pixels."""
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std


def load_image(source: Source, index: int) -> Image.Image:
    """Image `index` as RGB.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return source.load(index)
    except UnreadableImage as error:
        raise UserError(
            f"{source.describe(index)} cannot be read ({error.reason}); remove it and evaluate again"
        ) from None


class _Images(Dataset[Tensor]):
    def __init__(self, source: Source, indices: Sequence[int], preprocessing: Preprocessing) -> None:
        self.source, self.indices, self.preprocessing = source, indices, preprocessing

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> Tensor:
        return self.preprocessing(load_image(self.source, self.indices[number]))


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
    dataset = _Images(source, chosen.tolist(), preprocessing)
    yield from loaded_batches(dataset, batch_size=batch_size, workers=workers)


class Pixels(Encoder):
    """The reference without a network: the pixels at 32 px, each channel in [-1, 1]."""

    depth, embed_dim, patch_size = 0, 3 * 32 * 32, 1

    def __init__(self, crop: float = 1.0) -> None:
        super().__init__()
        self.pretrained_cfg: Mapping[str, Any] = {
            "input_size": (3, 32, 32), "crop_pct": crop, "mean": (0.5,) * 3, "std": (0.5,) * 3,
        }  # fmt: skip

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        return Features(images.flatten(1))
