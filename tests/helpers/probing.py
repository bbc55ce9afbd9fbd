"""Tables of features, and a small network over drawn images, for tests of probes."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from equimid.backbones import Encoder
from equimid.data import ArraySource, open_source
from equimid.evaluation import EvaluationConfig, FeatureTable, Study
from equimid.evaluation.probes.heads import predicted
from equimid.evaluation.probes.linear import choose_linear
from equimid.features import Features
from helpers.drawing import CPU, SCOPE


class PatchColours(Encoder):
    """Tokens that are one fixed linear function of each 4 px patch's mean colour; CLS is made of their mean."""

    depth, embed_dim, patch_size = 2, 8, 4
    pretrained_cfg: ClassVar = {"input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))

    def forward_features(self, images, layers=()):
        assert not self.training
        tokens = torch.einsum("dc,bchw->bdhw", self.weight, F.avg_pool2d(images, self.patch_size)).tanh()
        maps = {layer: tokens / 10**layer for layer in layers}
        cls = tokens.mean((2, 3))
        return Features(cls, maps, {layer: cls * layer for layer in layers})

    def final_norm(self, tokens):
        return F.layer_norm(tokens, (self.embed_dim,))


def study(config=None, encoder=None, seed=0, workers=0):
    scope = SCOPE if seed == 0 else SCOPE.__class__("backbone", "drawn", seed, "abc")
    return Study((encoder or PatchColours()).eval(), scope, config or EvaluationConfig(), Path("."), CPU, workers)


def clusters(n, classes=4, width=8, spread=0.1, seed=0):
    """Features that lie around one corner a class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = np.eye(classes, width)[labels] * 3 + spread * rng.normal(size=(n, width))
    return FeatureTable(torch.from_numpy(features).float(), torch.from_numpy(labels))


def coloured(n, classes=3, size=20, spread=30, seed=0):
    """Images whose mean colour tells the class, but for noise of `spread` of 255."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    colours = np.array([(200, 80, 80), (80, 200, 80), (80, 80, 200), (160, 160, 60)])[labels]
    images = colours[:, None, None] + rng.normal(0, spread, (n, 1, 1, 3)) + rng.normal(0, 20, (n, size, size, 3))
    return ArraySource(
        name="coloured", split="all", labels=labels, classes=tuple("abcd"[:classes]),
        images=images.clip(0, 255).astype(np.uint8), numbers=np.arange(n),
    )  # fmt: skip


def folders(root, counts, spread=30, seed=0):
    """Class folders of PNGs under `root`: {"train/a": 5, ...}; the folder's name tells the colour."""
    for folder, count in counts.items():
        number = "abcd".index(Path(folder).name)
        source = coloured(4 * count, classes=4, spread=spread, seed=seed + len(folder)) if count else ()
        (root / folder).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(source.images[4 * k + number]).save(root / folder / f"{k}.png")
    return str(root)


def digits_table(split):
    source = open_source("digits", split)
    features = torch.from_numpy(source.images.reshape(len(source), -1)).float() / 127.5 - 1
    return FeatureTable(features, torch.from_numpy(source.labels))


def probed(train, test, config, seed=0):
    """Top-1 in percent and details of the linear probe on tables."""
    weight, bias, details = choose_linear(train, int(train.labels.max()) + 1, config, seed, CPU)
    found = predicted(test.features @ weight.T + bias)
    return 100 * float((found == test.labels).float().mean()), details
