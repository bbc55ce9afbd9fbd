"""What cameras, screens and files do. x: (H, W, 3) in [0, 1]; n: severity from 0; scale: lengths per pixel of the
published constants."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from equimid.evaluation.robustness.corruptions.kernels import smooth_field

__all__ = ["contrast", "elastic_transform", "jpeg_compression", "pixelate", "saturate"]

Values = npt.NDArray[np.float32]

_ELASTIC = ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))


def contrast(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Each channel's distance to its mean, times a factor."""
    mean = x.mean((0, 1), dtype=np.float64).astype(np.float32)
    flat: Values = (x - mean) * np.float32((0.4, 0.3, 0.2, 0.1, 0.05)[n]) + mean
    return flat


def saturate(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Saturation S of HSV to c S + d, hue and value kept; grey counts as red. The first two severities take colour
    away, the others add it."""
    factor, shift = ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))[n]
    value = x.max(2, keepdims=True)
    spread = value - x.min(2, keepdims=True)
    saturation = np.divide(spread, value, out=np.zeros_like(value), where=value > 0)
    # each channel's way down from the value, 1 for the smallest
    red = np.tile(np.array((0, 1, 1), dtype=np.float32), (*x.shape[:2], 1))
    way = np.divide(value - x, spread, out=red, where=spread > 0)
    target = np.clip(saturation * factor + shift, 0, 1).astype(np.float32)
    coloured: Values = value * (1 - way * target)
    return coloured


def elastic_transform(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """A random affine map that moves three points around the centre by up to a length, then a smooth field: uniform
    noise in [-1, 1], blurred by sigma, times alpha. The first two severities move the image as a whole, the others
    crumple it."""
    alpha, sigma, affine = _ELASTIC[n]
    # 244, as published, of an image of 224; blurring takes 1 / sigma of the noise, so lengths scale as alpha / sigma
    alpha, sigma, affine = 244 * alpha * scale**2, 244 * sigma * scale, 244 * affine * scale
    height, width = x.shape[:2]
    centre, arm = np.array([height // 2, width // 2]), min(height, width) // 3
    points = centre + arm * np.array([[1, 1], [-1, 1], [-1, -1]])
    moved = points + rng.uniform(-affine, affine, (3, 2))
    # rows and columns of the given image at rows and columns of the new one
    back = np.linalg.solve(np.hstack([moved, np.ones((3, 1))]), points)
    fields = [smooth_field(rng.uniform(-1, 1, (height, width)).astype(np.float32), sigma) * alpha for _ in range(2)]
    rows, columns = np.arange(height)[:, None] + fields[0], np.arange(width) + fields[1]
    at = [rows * back[0, axis] + columns * back[1, axis] + back[2, axis] for axis in range(2)]
    warped = [ndimage.map_coordinates(x[..., c], at, order=1, mode="mirror") for c in range(3)]
    return np.stack(warped, axis=2)


def pixelate(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Fewer pixels, each the mean of those under it, and back again; the second row is that of CIFAR-10-C."""
    fraction = min((0.6, 0.5, 0.4, 0.3, 0.25)[n] / scale, (0.95, 0.9, 0.85, 0.75, 0.65)[n])
    image = Image.fromarray(np.rint(x * 255).astype(np.uint8))
    few = image.resize((int(image.width * fraction), int(image.height * fraction)), Image.Resampling.BOX)
    return np.asarray(few.resize(image.size, Image.Resampling.BOX), dtype=np.float32) / np.float32(255)


def jpeg_compression(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Pillow's JPEG of a quality."""
    file = io.BytesIO()
    Image.fromarray(np.rint(x * 255).astype(np.uint8)).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[n])
    return np.asarray(Image.open(file), dtype=np.float32) / np.float32(255)
