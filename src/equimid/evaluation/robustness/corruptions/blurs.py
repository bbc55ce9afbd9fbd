"""Blurs. x: (H, W, 3) in [0, 1]; n: severity from 0; scale: lengths per pixel of the published constants.

The second row of constants is that of CIFAR-10-C, for lengths that vanish on a small image.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from equimid.evaluation.robustness.corruptions.kernels import convolve, disk, gaussian, magnify, motion

__all__ = ["defocus_blur", "gaussian_blur", "glass_blur", "motion_blur", "zoom_blur"]

Values = npt.NDArray[np.float32]


def gaussian_blur(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Of a deviation."""
    return gaussian(x, max((1, 2, 3, 4, 6)[n] * scale, (0.4, 0.6, 0.7, 0.8, 1)[n]))


def defocus_blur(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """A disk of a radius, its edge softened by a deviation that does not scale: it is about single pixels."""
    published, soft = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))[n]
    radius = published * scale
    if radius < 1:
        radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[n]
    return convolve(x, disk(radius, soft))


def glass_blur(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Blurred; then, pixel after pixel from the last to the first, each takes the value of one at most `distance` away;
    blurred again. What a pixel takes may itself have been taken: the order is part of the definition. (The published
    program means to swap, but writes through views of one array, which copies; so do its images.)"""
    sigma, distance, times = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))[n]
    if distance * scale < 1:
        small, distance, times = ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2))[n]
        sigma = max(sigma * scale, small)
    else:
        sigma, distance = sigma * scale, round(distance * scale)
    blurred = np.rint(gaussian(x, sigma) * 255) / 255
    height, width = x.shape[:2]
    rows, columns = np.arange(height - distance, distance, -1), np.arange(width - distance, distance, -1)
    places = (rows[:, None] * width + columns).ravel()
    taken = np.arange(height * width).tolist()  # plain numbers: quicker than an array where each step needs the last
    for _ in range(times):
        down, right = rng.integers(-distance, distance, (2, len(places)))
        for place, other in zip(places.tolist(), (places + down * width + right).tolist(), strict=True):
            taken[place] = taken[other]
    shuffled: Values = blurred.reshape(-1, 3)[np.array(taken)].reshape(x.shape)
    return gaussian(shuffled, sigma)


def motion_blur(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Along a direction within 45 degrees of the horizontal."""
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[n]
    least = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[n]
    return motion(x, max(radius * scale, least[0]), max(sigma * scale, least[1]), rng.uniform(-45, 45))


def zoom_blur(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Mean of the image and of itself magnified by 1, 1 + step, ... below a largest factor."""
    end, step = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))[n]
    image = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    total, factors = x.copy(), np.arange(1, end, step)
    for factor in factors:
        total += np.asarray(magnify(image, factor), dtype=np.float32) / 255
    return total / np.float32(len(factors) + 1)
