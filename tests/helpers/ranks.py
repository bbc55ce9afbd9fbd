"""Images and an environment for runs of several processes."""

import os

import numpy as np
from PIL import Image


class Drawn:
    """Forty images of noise."""

    def __len__(self):
        return 40

    def load(self, index):
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))

    def describe(self, index):
        return f"drawn {index}"

    def fingerprint(self):
        return "drawn"


def as_torchrun_sets(rank, ranks):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
