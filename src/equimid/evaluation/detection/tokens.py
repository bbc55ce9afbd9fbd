"""Frozen tokens of images, each on one canvas: resized with its proportions kept, padded at right and below.

An image's tokens thus depend on nothing but the image, and can be computed once (ViTDet pads to a square alike).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from equimid.data import loaded_batches, open_image
from equimid.errors import UnreadableImage, UserError
from equimid.evaluation.detection.annotations import DetectionSet
from equimid.evaluation.detection.pyramid import STRIDE
from equimid.evaluation.detection.turned import turned_image
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.study import Study

__all__ = ["Canvas", "StudentOutputs", "token_batches"]

_CACHE_GIB = 2.0  # tokens of both flips stay in memory below this

StudentOutputs = tuple[int, bool]  # an image's index, and whether it is flipped


@dataclass(frozen=True)
class Canvas:
    """
    grid:  rows and columns of tokens
    patch: pixels of a token
    long:  side of the resized images, pixels
    stretch: what multiplies height and width of the resized images, to show them at another scale
    """

    grid: tuple[int, int]
    patch_size: int
    long: int
    stretch: tuple[float, float] = (1.0, 1.0)

    @staticmethod
    def around(
        sets: Sequence[DetectionSet], long: int, patch_size: int, stretch: tuple[float, float] = (1.0, 1.0)
    ) -> "Canvas":
        """The smallest one that holds every image."""
        sizes = np.concatenate([each.sizes for each in sets])
        resized = np.array([_resized(width, height, long, stretch) for width, height in np.unique(sizes, axis=0)])
        columns, rows = (math.ceil(side / patch_size) for side in resized.max(0))
        return Canvas((rows, columns), patch_size, long, stretch)

    def scale(self, size: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
        """Of an image (width, height): what multiplies its boxes (x0, y0, x1, y1) on their way into the detector's
        frame, and (height, width) of the image there."""
        unit = STRIDE / self.patch_size
        width, height = _resized(int(size[0]), int(size[1]), self.long, self.stretch)
        factor = np.array([width * unit / size[0], height * unit / size[1]])
        return np.tile(factor, 2), (height * unit, width * unit)

    def place(self, image: Image.Image, flip: bool, preprocessing: Preprocessing) -> Tensor:
        """An RGB image to (3, H, W), normalised; bicubic, the padding 0."""
        width, height = _resized(*image.size, self.long, self.stretch)
        pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))
        x = pixels.permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
        x = (x - mean) / std
        canvas = torch.zeros(3, *(side * self.patch_size for side in self.grid))
        canvas[:, :height, :width] = x.flip(-1) if flip else x
        return canvas


def _resized(width: int, height: int, long: int, stretch: tuple[float, float]) -> tuple[int, int]:
    ratio = long / max(width, height)
    return max(1, round(width * ratio * stretch[1])), max(1, round(height * ratio * stretch[0]))


@dataclass(frozen=True, eq=False)
class _Placed(Dataset[Tensor]):
    images: DetectionSet
    canvas: Canvas
    preprocessing: Preprocessing
    seen: Sequence[StudentOutputs]

    def __len__(self) -> int:
        return len(self.seen)

    def __getitem__(self, number: int) -> Tensor:
        index, flip = self.seen[number]
        file, size = self.images.images[index], tuple(int(side) for side in self.images.sizes[index])
        try:
            image = turned_image(open_image(file), self.images.turns, self.images.flip)
        except UnreadableImage as error:
            raise UserError(f"{file} cannot be read ({error.reason}); mend it, or take it off the list") from None
        if image.size != size:
            raise UserError(
                f"{file} has {image.width} x {image.height} px, but its annotation says {size[0]} x {size[1]}; its "
                "boxes would lie elsewhere: give the image that was annotated"
            )
        return self.canvas.place(image, flip, self.preprocessing)


def token_batches(
    study: Study, images: DetectionSet, canvas: Canvas, batches: Sequence[Sequence[StudentOutputs]], what: str
) -> Iterator[Tensor]:
    """Tokens (b, D, h, w) after the final norm, on the device, for each of the batches.

    Where the batches come back to every image and there is room, the tokens are computed once, and kept.
    """
    every = sorted({seen for batch in batches for seen in batch})
    shown = [seen for batch in batches for seen in batch]
    gib = len(every) * study.encoder.embed_dim * math.prod(canvas.grid) * 4 / 2**30
    if len(shown) < 2 * len(every) or gib > _CACHE_GIB:
        yield from _computed(study, images, canvas, batches)
        return
    kept: list[Tensor] = []
    place = {seen: number for number, seen in enumerate(every)}
    with study.bar(what) as progress:
        for tokens in _computed(study, images, canvas, [every[i : i + 16] for i in range(0, len(every), 16)]):
            kept += tokens.cpu()
            if progress:
                progress(len(kept), len(every))
    for batch in batches:
        yield torch.stack([kept[place[seen]] for seen in batch]).to(study.device)


def _computed(
    study: Study, images: DetectionSet, canvas: Canvas, batches: Sequence[Sequence[StudentOutputs]]
) -> Iterator[Tensor]:
    encoder = study.encoder
    shown = [seen for batch in batches for seen in batch]
    ends = np.cumsum([len(batch) for batch in batches])
    numbers = [list(range(end - len(batch), end)) for batch, end in zip(batches, ends.tolist(), strict=True)]
    placed = _Placed(images, canvas, study.preprocessing, shown)
    for x in loaded_batches(placed, batches=numbers, workers=study.workers):
        yield _tokens(study, encoder.depth, x.to(study.device, non_blocking=True))


@torch.no_grad()  # not inference_mode: what is trained on these tokens needs them for its gradient
def _tokens(study: Study, depth: int, images: Tensor) -> Tensor:
    encoder = study.encoder
    found = encoder.forward_features(images, [depth]).maps
    if depth not in found:
        raise UserError("this network has no token maps, and detection needs one; give a vision transformer")
    return encoder.final_norm(found[depth].movedim(1, -1)).movedim(-1, 1).float().contiguous()
