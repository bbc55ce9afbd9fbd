"""Images with boxes, mirrored and turned: files, sizes and boxes move alike, and nothing is resampled.

A turn is that of `Pose`: mirrored left-right first, then quarter turns counter-clockwise.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from equimid.evaluation.detection.annotations import DetectionSet

__all__ = ["turned", "turned_boxes", "turned_image"]

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
