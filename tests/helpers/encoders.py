"""Encoders whose equivariance is known, and studies of them on drawn images, for tests of evaluation."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from equimid.backbones import Encoder
from equimid.evaluation import EvaluationConfig
from equimid.evaluation.study import Study
from equimid.features import Features
from helpers.drawing import SCOPE, drawn


class PatchMeans(Encoder):
    """Token maps that are, in every layer, one linear function of each patch's mean colour, then `spoil`; the
    embedding is the mean token of the last one."""

    reads_cls = False

    def __init__(self, spoil=None, depth=2, grid=4, patch=4, width=8):
        super().__init__()
        self.depth, self.embed_dim, self.patch_size, side = depth, width, patch, grid * patch
        self.pretrained_cfg = {"input_size": (3, side, side), "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.25,) * 3}
        rng = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(depth, width, 3, generator=rng), requires_grad=False)
        self.bias = nn.Parameter(torch.randn(depth, width, 1, 1, generator=rng), requires_grad=False)
        self.spoil, self.counts = spoil or (lambda maps: maps), {"passes": 0}
        self.eval()

    def forward_features(self, images, layers=()):
        assert not self.training
        self.grid(images)
        self.counts["passes"] += 1
        patches = F.avg_pool2d(images, self.patch_size)
        maps = {n: self.spoil(self.of(n, patches)) for n in {*layers, self.depth}}
        return Features(maps[self.depth].mean((2, 3)), {n: maps[n] for n in layers})

    @property
    def passes(self):
        return self.counts["passes"]

    def of(self, layer, patches):
        return torch.einsum("dc,nchw->ndhw", self.weight[layer - 1], patches) + self.bias[layer - 1]


def shifted(maps):
    return maps.roll(1, -1)


def placed(maps):
    """Channels that say where they are."""
    rows = torch.linspace(-2, 2, maps.shape[2])[:, None].expand(maps.shape[2:])
    columns = torch.linspace(-2, 2, maps.shape[3])[None, :].expand(maps.shape[2:])
    return torch.cat([maps[:, :2] + rows, maps[:, 2:4] + columns, maps[:, 4:]], dim=1)


def repeated(maps):
    """One vector per image, everywhere in it: place is lost."""
    return maps.mean((2, 3), keepdim=True).expand_as(maps)


def constant(maps):
    """One vector, whatever the image."""
    return torch.linspace(-1, 1, maps.shape[1])[:, None, None].expand_as(maps)


def positions(maps):
    """A table of random numbers, whatever the image: tokens say where they are, and nothing else."""
    table = torch.randn(maps.shape[1], 64, 64, generator=torch.Generator().manual_seed(1))
    return table[:, : maps.shape[2], : maps.shape[3]].expand_as(maps)


class Noise:
    """Other random numbers at every pass."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(2)

    def __call__(self, maps):
        return torch.randn(maps.shape, generator=self.rng)


def folder_of(path, count, side=16, cell=4, seed=0):
    """A folder of drawn images."""
    path.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(drawn(count, (side, side), seed=seed, cell=cell).images):
        Image.fromarray(image).save(path / f"{number:03}.png")
    return str(path)


def study_of(encoder, tmp_path, scope=SCOPE, **settings):
    return Study(encoder, scope, EvaluationConfig(**settings), tmp_path)
