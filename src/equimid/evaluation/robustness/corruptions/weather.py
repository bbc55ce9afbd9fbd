"""Weather. x: (H, W, 3) in [0, 1]; n: severity from 0; scale: lengths per pixel of the published constants."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage

from equimid.evaluation.robustness.corruptions.kernels import gaussian, gaussian_gain, magnify, motion

__all__ = ["brightness", "fog", "frost", "plasma", "snow", "spatter"]

Values = npt.NDArray[np.float32]

_SNOW = (
    (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
    (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
    (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
)
_SPATTER = (
    (0.65, 0.3, 4, 0.69, 0.6),
    (0.65, 0.3, 3, 0.68, 0.6),
    (0.65, 0.3, 2, 0.68, 0.5),
    (0.65, 0.3, 1, 0.65, 1.5),
    (0.67, 0.4, 1, 0.65, 1.5),
)
_WATER, _MUD = (np.array(colour, dtype=np.float32) / np.float32(255) for colour in ((175, 238, 238), (63, 42, 20)))
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)


def brightness(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Value V of HSV to V + c, at most 1; hue and saturation kept: every channel times (V + c) / V."""
    value = x.max(2, keepdims=True)
    brighter = np.minimum(value + np.float32((0.1, 0.2, 0.3, 0.4, 0.5)[n]), 1)
    lit: Values = np.where(value > 0, x * (brighter / np.maximum(value, 1e-6)), brighter)
    return lit


def fog(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """A plasma fractal times c is added, and the range brought back to what it was."""
    amount, decay = ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))[n]
    height, width = x.shape[:2]
    cloud = plasma(2 ** math.ceil(math.log2(max(height, width))), decay, rng)[:height, :width, None]
    most = x.max()
    foggy: Values = (x + amount * cloud) * (most / (most + amount))
    return foggy


def plasma(side: int, decay: float, rng: np.random.Generator) -> Values:
    """Midpoint displacement (diamond-square) on a torus of side 2^k, (side, side) in [0, 1].

    The middle of a square, then of a diamond, is the mean of its four corners plus uniform noise, whose reach shrinks
    by decay^2 at every level.
    """
    field, reach, step = np.zeros((side, side)), 1.0, side
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        across = corners + np.roll(corners, -1, 1)
        middles = (across + np.roll(across, -1, 0)) / 4 + rng.uniform(-reach, reach, corners.shape)
        field[half::step, half::step] = middles
        above = across + middles + np.roll(middles, 1, 0)
        field[::step, half::step] = above / 4 + rng.uniform(-reach, reach, corners.shape)
        beside = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        field[half::step, ::step] = beside / 4 + rng.uniform(-reach, reach, corners.shape)
        step, reach = half, reach / decay**2
    field -= field.min()
    unit: Values = (field / field.max()).astype(np.float32)
    return unit


def snow(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Noise, magnified to flakes, only what exceeds a threshold, blurred along its fall; twice, upright and upside
    down, over an image that whitens."""
    mean, deviation, size, threshold, radius, sigma, kept = _SNOW[n]
    white = Image.fromarray(rng.normal(mean, deviation, x.shape[:2]).astype(np.float32))
    flakes = np.array(magnify(white, max(1.0, size * scale))).clip(0, 1)
    flakes[flakes < threshold] = 0
    fall = motion(flakes, max(radius * scale, 1), max(sigma * scale, 1), rng.uniform(-135, -45))[..., None]
    grey = x @ np.array((0.299, 0.587, 0.114), dtype=np.float32)
    paler = np.maximum(x, 1.5 * grey[..., None] + 0.5)
    covered: Values = kept * x + (1 - kept) * paler + fall + fall[::-1, ::-1]
    return covered


def frost(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Frost laid over the dimmed image."""
    kept, amount = ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))[n]
    covered: Values = kept * x + amount * _frost_texture(x.shape[0], x.shape[1], rng, scale)
    return covered


def _frost_texture(height: int, width: int, rng: np.random.Generator, scale: float) -> Values:
    """(height, width, 3) in [0, 1], drawn where ImageNet-C has photographs: needles of ice, the greatest of noises that
    are each smeared along one of six directions, thicker here and thinner there, of a cold white. As bright as those
    photographs: the image is changed by as much as with them."""
    down = fft.fftfreq(height)[:, None]
    right = fft.rfftfreq(width)
    long, thin = max(10 * scale, 2.0), max(0.9 * scale, 0.4)
    needles = np.full((height, width), -np.inf, dtype=np.float32)
    turn = rng.uniform(0, math.pi / 6)
    for k in range(6):
        sine, cosine = math.sin(turn + k * math.pi / 6), math.cos(turn + k * math.pi / 6)
        along, over = right * cosine + down * sine, down * cosine - right * sine
        decay = np.exp(-2 * (math.pi * long * along) ** 2 - 2 * (math.pi * thin * over) ** 2).astype(np.float32)
        smeared = fft.irfft2(fft.rfft2(rng.standard_normal((height, width), dtype=np.float32)) * decay, (height, width))
        np.maximum(needles, smeared / smeared.std(), out=needles)
    side = 2 ** math.ceil(math.log2(max(height, width)))
    thickness = plasma(side, 1.6, rng)[:height, :width]
    ice = (0.4 + 0.6 / (1 + np.exp(-2.5 * (needles - 1.2)))) * (0.6 + 0.4 * thickness)
    texture: Values = ice[..., None] * np.array((0.86, 0.94, 1), dtype=np.float32)
    return texture


def spatter(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Drops where blurred noise exceeds a threshold: of water, shaded at their outline, or from severity 4 of mud."""
    mean, deviation, sigma, threshold, amount = _SPATTER[n]
    small = max(sigma * scale, 0.7)
    # noise such that the drops cover what they cover at the published size
    deviation *= gaussian_gain(sigma) / gaussian_gain(small)
    liquid = gaussian(rng.normal(mean, deviation, x.shape[:2]).astype(np.float32), small)
    liquid[liquid < threshold] = 0
    if n < 3:
        drops = (_water(liquid, scale) * amount)[..., None]
        wet: Values = x + drops * _WATER
        return wet
    mud = gaussian((liquid > threshold).astype(np.float32), amount * small / sigma)[..., None]
    mud[mud < 0.8] = 0
    dirty: Values = x * (1 - mud) + mud * _MUD
    return dirty


def _water(liquid: Values, scale: float) -> Values:
    """Light on drops (H, W), at most 1: the distance to their outline, at most 20 px, equalised and embossed."""
    wet = liquid > 0
    if not wet.any():
        return np.zeros_like(liquid)
    outline = wet & ~ndimage.binary_erosion(wet, border_value=1)
    if not outline.any():
        return np.zeros_like(liquid)
    distance = np.minimum(ndimage.distance_transform_edt(~outline), max(20 * scale, 2.0))
    levels = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256).cumsum()
    first = counts[counts > 0][0]
    even = np.rint((counts - first).clip(0) / max(levels.size - first, 1) * 255)[levels].astype(np.float32)
    embossed = ndimage.correlate(even, _EMBOSS, mode="mirror").clip(0, 255)
    shaded = liquid * ndimage.uniform_filter(embossed, 3, mode="mirror")
    light: Values = shaded / max(float(shaded.max()), 1e-6)
    return light
