"""Small networks whose maps are known, and photographs as files, for tests of pictures and of the explorer."""

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from equimid.backbones import Encoder
from equimid.evaluation import EvaluationConfig, Scope, Study
from equimid.features import Features
from helpers.drawing import CPU


class Colours(Encoder):
    """Every token is a linear function of its patch's mean colour: quarter turns and flips act exactly on its maps."""

    depth, embed_dim, patch_size = 8, 6, 8
    pretrained_cfg: ClassVar = {"input_size": (3, 32, 32), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 6, 3, generator=torch.Generator().manual_seed(0)))

    def forward_features(self, images, layers=()):
        patches = F.avg_pool2d(images, self.patch_size)
        maps = {layer: torch.einsum("dc,bchw->bdhw", self.weight[layer - 1], patches) for layer in layers}
        return Features(images.mean((2, 3)).repeat(1, 2), maps)


class Places(Colours):
    """Every token says where it is and nothing else: `place(h, w)` is the map of every image."""

    def forward_features(self, images, layers=()):
        h, w = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        maps = torch.from_numpy(place(h, w)).expand(len(images), -1, -1, -1)
        return Features(images.mean((2, 3)).repeat(1, 2), dict.fromkeys(layers, maps))


def place(h, w):
    """(6, h, w)"""
    rows, columns = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    return np.stack([rows, columns, rows * columns, 0 * rows, columns**2, rows - 3]).astype(np.float32)


def photograph_folder(folder, count=4, classes=(), side=32, cell=8, seed=0):
    """Images of cells of random colours, the number of files in all; in folders of classes where there are any."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        cells = rng.integers(0, 256, (side // cell, side // cell, 3), dtype=np.uint8)
        into = folder / (classes[number % len(classes)] if classes else "")
        into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(cells.repeat(cell, 0).repeat(cell, 1)).save(into / f"{number:02}.png")
    return str(folder)


def study_in(folder, encoder, data, subject="backbone"):
    folder.mkdir(parents=True, exist_ok=True)
    return Study(encoder.eval(), Scope(subject, data, 0, "abc"), EvaluationConfig(), folder, CPU)
