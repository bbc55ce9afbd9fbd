"""Noise, each value of each channel for itself. x: (H, W, 3) in [0, 1]; n: severity from 0."""

import numpy as np
import numpy.typing as npt

__all__ = ["gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"]

Values = npt.NDArray[np.float32]


def gaussian_noise(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """x + N(0, s)."""
    return x + (0.08, 0.12, 0.18, 0.26, 0.38)[n] * rng.standard_normal(x.shape, dtype=np.float32)


def shot_noise(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """Poisson(c x) / c: light counted by c photons."""
    photons = (60, 25, 12, 5, 3)[n]
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def impulse_noise(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """A share of the values is 0 or 1, one as likely as the other."""
    fraction = (0.03, 0.06, 0.09, 0.17, 0.27)[n]
    drawn = rng.random(x.shape, dtype=np.float32)
    return np.where(drawn < fraction / 2, np.float32(0), np.where(drawn < fraction, np.float32(1), x))


def speckle_noise(x: Values, n: int, rng: np.random.Generator, scale: float) -> Values:
    """x + x N(0, s)."""
    return x + x * (0.15, 0.2, 0.35, 0.45, 0.6)[n] * rng.standard_normal(x.shape, dtype=np.float32)
