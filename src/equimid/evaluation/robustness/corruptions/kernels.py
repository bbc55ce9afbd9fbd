"""Filters that several corruptions share, on values (H, W) or (H, W, C)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage

__all__ = ["convolve", "disk", "gaussian", "gaussian_gain", "magnify", "motion", "smooth_field"]

Values = npt.NDArray[np.float32]


def gaussian(x: Values, sigma: float) -> Values:
    """Gaussian blur over height and width, cut at 4 sigma, the border repeated."""
    out: Values = ndimage.gaussian_filter(x, (sigma, sigma, *[0] * (x.ndim - 2)), mode="nearest")
    return out


def gaussian_gain(sigma: float) -> float:
    """Deviation of white noise of deviation 1 after `gaussian`, far from the border."""
    i = np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1)
    weights = np.exp(-(i**2) / (2 * sigma**2))
    return float((weights**2).sum() / weights.sum() ** 2)


def smooth_field(white: Values, sigma: float) -> Values:
    """Gaussian blur of (H, W), mirrored at the border, by a product of cosine transforms: sigma may be as large as the
    image."""
    decay = [np.exp(-((math.pi * sigma * np.arange(n) / n) ** 2) / 2).astype(np.float32) for n in white.shape]
    field: Values = fft.idctn(fft.dctn(white) * decay[0][:, None] * decay[1])
    return field


def disk(radius: float, sigma: float) -> Values:
    """(k, k), sums to 1: the pixels within the radius, the edge softened by a small Gaussian (3 px wide up to a radius
    of 8, then 5)."""
    reach = max(math.floor(radius), 0)
    soft = 1 if radius <= 8 else 2
    i = np.arange(-reach - soft, reach + soft + 1)
    inside = (i[:, None] ** 2 + i**2 <= radius**2).astype(np.float32)
    bell = np.exp(-(np.arange(-soft, soft + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    kernel = ndimage.convolve1d(ndimage.convolve1d(inside, bell, 0, mode="constant"), bell, 1, mode="constant")
    weights: Values = kernel / kernel.sum()
    return weights


def convolve(x: Values, kernel: Values) -> Values:
    """(H, W, C) with a symmetric kernel (k, k), mirrored at the border; by Fourier transforms, for kernels are wide."""
    reach = len(kernel) // 2
    height, width = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    shape = [fft.next_fast_len(side, real=True) for side in padded.shape[:2]]
    spectrum = fft.rfft2(padded, shape, axes=(0, 1)) * fft.rfft2(kernel, shape)[..., None]
    whole: Values = fft.irfft2(spectrum, shape, axes=(0, 1))
    return whole[2 * reach : 2 * reach + height, 2 * reach : 2 * reach + width]


def motion(x: Values, radius: float, sigma: float, degrees: float) -> Values:
    """One-sided Gaussian trail of 2 radius + 1 pixels in a direction (x to the right, y down), the border repeated."""
    steps = np.arange(max(3, 2 * round(radius) + 1))
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    offsets = np.rint(steps[:, None] * (math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))).astype(int)
    reach = int(np.abs(offsets).max())
    height, width = x.shape[:2]
    padded = np.pad(x, ((reach, reach), (reach, reach), *[(0, 0)] * (x.ndim - 2)), mode="edge")
    blurred = np.zeros_like(x)
    for weight, (down, right) in zip(weights, offsets, strict=True):
        if weight > 1e-4:
            top, left = reach + down, reach + right
            blurred += np.float32(weight) * padded[top : top + height, left : left + width]
    return blurred


def magnify(image: Image.Image, factor: float) -> Image.Image:
    """The middle 1 / factor of the image at the size of the whole, bilinear."""
    width, height = image.size
    margins: Sequence[float] = (width * (1 - 1 / factor) / 2, height * (1 - 1 / factor) / 2)
    box = (margins[0], margins[1], width - margins[0], height - margins[1])
    return image.resize(image.size, Image.Resampling.BILINEAR, box=box)
