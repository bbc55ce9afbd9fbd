"""Frozen tokens of images, each on one canvas: resized with its proportions kept, padded at right and below.

An image's tokens thus depend on nothing but the image, and can be computed once (ViTDet pads to a square alike).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
from equimid.evaluation.preprocessing import Preprocessing
from equimid.evaluation.study import Study

__all__ = ["Canvas", "View", "token_batches", "turned", "turned_boxes", "turned_image"]

_CACHE_GIB = 2.0  # tokens of both flips stay in memory below this

View = tuple[int, bool]  # an image's index, and whether it is flipped


@dataclass(frozen=True)
class Canvas:
    """What an image is laid on before the network sees it.

    Attributes:
        grid:       rows and columns of tokens
        patch_size: side of a token, pixels
        long:       longer side of the resized images, pixels
        stretch:    what multiplies height and width of the resized images, to show them at another scale
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
        x = preprocessing.normalise(image.resize((width, height), Image.Resampling.BICUBIC))
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
    views: Sequence[View]

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, number: int) -> Tensor:
        index, flip = self.views[number]
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
    study: Study, images: DetectionSet, canvas: Canvas, batches: Sequence[Sequence[View]]
) -> Iterator[Tensor]:
    """Tokens (b, D, h, w) after the final norm, on the device, for each of the batches.

    Where the batches come back to every image and there is room, the tokens are computed once, and kept.
    """
    every = sorted({view for batch in batches for view in batch})
    shown = [view for batch in batches for view in batch]
    gib = len(every) * study.encoder.embed_dim * math.prod(canvas.grid) * 4 / 2**30
    if len(shown) < 2 * len(every) or gib > _CACHE_GIB:
        yield from _computed(study, images, canvas, batches)
        return
    kept: list[Tensor] = []
    place = {view: number for number, view in enumerate(every)}
    computed = _computed(study, images, canvas, [every[i : i + 16] for i in range(0, len(every), 16)])
    for tokens in study.track(computed, "tokens", len(every), len):
        kept += tokens.cpu()
    for batch in batches:
        yield torch.stack([kept[place[view]] for view in batch]).to(study.device)


def _computed(
    study: Study, images: DetectionSet, canvas: Canvas, batches: Sequence[Sequence[View]]
) -> Iterator[Tensor]:
    shown = [view for batch in batches for view in batch]
    ends = np.cumsum([len(batch) for batch in batches])
    numbers = [list(range(end - len(batch), end)) for batch, end in zip(batches, ends.tolist(), strict=True)]
    placed = _Placed(images, canvas, study.preprocessing, shown)
    for x in loaded_batches(placed, batches=numbers, workers=study.workers):
        yield study.tokens(x).contiguous()


Boxes = npt.NDArray[np.float64]

_QUARTERS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


def turned(images: DetectionSet, turns: int, flip: bool) -> DetectionSet:
    """An upright set in another pose; its files are turned when they are opened."""
    pairs = zip(images.boxes, images.sizes.tolist(), strict=True)
    boxes = tuple(turned_boxes(of, (width, height), turns, flip) for of, (width, height) in pairs)
    sizes = images.sizes[:, ::-1] if turns % 2 else images.sizes
    return replace(images, sizes=sizes, boxes=boxes, turns=turns % 4, flip=flip)


def turned_image(image: Image.Image, turns: int, flip: bool) -> Image.Image:
    """An image, mirrored and turned."""
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.transpose(_QUARTERS[turns % 4]) if turns % 4 else image


def turned_boxes(boxes: Boxes, size: tuple[int, int], turns: int, flip: bool) -> Boxes:
    """Boxes (k, 4), xyxy, of an image (width, height), where they lie after it was mirrored and turned."""
    width, height = size
    x0, y0, x1, y1 = boxes.T
    if flip:
        x0, x1 = width - x1, width - x0
    for _ in range(turns % 4):
        # counter-clockwise the right edge becomes the top: (x, y) goes to (y, width - x)
        x0, y0, x1, y1 = y0, width - x1, y1, width - x0
        width, height = height, width
    return np.stack([x0, y0, x1, y1], axis=1)
