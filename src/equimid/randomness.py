"""Counted randomness: a generator is a function of (seed, purpose, counters), never of what ran before.

A killed run that resumes, another number of data workers or of ranks: all draw the same numbers.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["counted_generator", "counted_torch_seed"]


def _key(seed: int, purpose: str, counters: tuple[int, ...]) -> int:
    text = ",".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def counted_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Generator for one purpose ("order", "view", "pose") at one place ((epoch, index) or (step,)).

    Philox takes the whole 128-bit key, so two places do not share a stream.
    """
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose, counters)))


@contextmanager
def counted_torch_seed(seed: int, purpose: str, *counters: int) -> Iterator[None]:
    """torch's global generators seeded for the block and put back after it.

    For code that takes no generator: weight initialisation, dropout.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_key(seed, purpose, counters) % 2**63)
        yield
