"""The command line as a user calls it, on small runs and drawn images."""

import sys

import numpy as np
from PIL import Image

from helpers.processes import run_program

QUICK = [
    "--recipe", "ser-tiny", "backbone.embed_dim=24", "backbone.depth=3", "backbone.num_heads=2",
    "backbone.image_size=16", "backbone.patch_size=4", "method.hidden=16", "method.dim=8", "ser.hidden=8",
    "train.batch_size=32", "train.steps=3", "runtime.workers=0", "runtime.tensorboard=false",
    "evaluation.linear_epochs=2", "evaluation.equivariance_images=8",
]  # fmt: skip


# what is always measured
ROUTINE = {"equivariance", "feature_maps", "attention", "neighbours", "explorer"}


def equimid(*arguments, cwd=None):
    """`python -m equimid` with these words."""
    return run_program([sys.executable, "-m", "equimid", *arguments], cwd=cwd)


def draw_images(folder, count, size=(24, 20)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.jpg", quality=90)
