"""Boxes of an image: how they are drawn, and how they become squares of pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Box", "Cut", "centre_crop", "choose_scale", "cut_out", "sample_crop", "sample_shared_crop"]

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True, slots=True)
class Cut:
    """What is to be cut from an image.

    Attributes:
        box: in px of the image.
        size: px, the side of the square that the box is resized to.
        flipped: whether it is mirrored then.
    """

    box: Box
    size: int
    flipped: bool

    def fractions(self, image: tuple[int, int]) -> list[float]:
        """[top, left, height, width, flipped], the box as fractions of an image of (width, height) px."""
        (left, top, right, bottom), (width, height) = self.box, image
        return [top / height, left / width, (bottom - top) / height, (right - left) / width, float(self.flipped)]


def choose_scale(cuts: Sequence[Cut], scales: Sequence[int]) -> int:
    """Choose by how much an image may be divided while it is decoded: the largest of `scales` at which no box has
    fewer pixels across or down than it is resized to; else 1.

    So no box is enlarged that was to be reduced, and the edge of a box moves by at most half a pixel of its view.
    """
    room = min(min(right - left, bottom - top) / cut.size for cut in cuts for left, top, right, bottom in [cut.box])
    return next((scale for scale in scales if scale <= room), 1)


def cut_out(pixels: Tensor, cut: Cut, interpolation: str, scale: int = 1) -> Tensor:
    """Cut a box, then resize it with antialiasing; pixels outside the box have no part in it.

    The result is within 1 of 255 of PIL's bilinear resize of the same pixels. The CPU computes in whole numbers, other
    devices in float32.

    Args:
        pixels: (3, ceil(H / scale), ceil(W / scale)) uint8, of an image of W x H px.

    Returns:
        (3, S, S) uint8, channels together in memory.
    """
    left, top, right, bottom = (round(edge / scale) for edge in cut.box)
    c, h, w = pixels.stride()
    rows, columns = min(bottom, pixels.shape[1]) - top, min(right, pixels.shape[2]) - left
    # a batch of one with the channels last, in every stride: the CPU's kernel for whole numbers is fast on no other
    box = pixels.as_strided((1, 3, rows, columns), (rows * h, c, h, w), pixels.storage_offset() + top * h + left * w)
    native = box.device.type == "cpu"
    resized = F.interpolate(box if native else box.float(), (cut.size, cut.size), mode=interpolation, antialias=True)[0]
    resized = resized if native else resized.round_().clamp_(0, 255).to(torch.uint8)
    return resized.flip(2) if cut.flipped else resized


def sample_crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draw the box of a random resized crop, in px. Torchvision's rule: ten tries, then the centre.

    Source: torchvision `RandomResizedCrop.get_params`, aspect width / height log-uniform in [3/4, 4/3].
    """
    width, height = size
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(10):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * rng.random())
        aspect = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def sample_shared_crop(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """`sample_crop` for images of a pair, which may differ in shape: the same part of each, at least a pixel wide and
    high. The box is drawn on a large square and stretched to the image."""
    side, (width, height) = 2**16, size
    box = sample_crop((side, side), scale, rng)
    left, top = int(box[0] / side * width), int(box[1] / side * height)
    right, bottom = round(box[2] / side * width), round(box[3] / side * height)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def centre_crop(size: tuple[int, int], fraction: float) -> Box:
    """The square in the centre of an image of (width, height) px, with a side of `fraction` of the shorter one."""
    width, height = size
    side = max(1, round(min(size) * fraction))
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
