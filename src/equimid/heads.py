"""Projectors and predictors: what sits between a feature and a loss, and is thrown away after training."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from equimid.distributed import CrossRankBatchNorm1d
from equimid.precision import l2_normalize, no_autocast

__all__ = ["DINOHead", "mlp_head", "patch_projector"]


def mlp_head(widths: Sequence[int], last_norm: bool = True, last_bias: bool = False) -> nn.Sequential:
    """MoCo-v3's head: bias-free linears, cross-rank batch norm and ReLU between them, and at the end a batch norm
    without affine parameters.

    Source: moco-v3 `moco/builder.py`, `_build_mlp`; linears keep torch's default initialisation.

    Args:
        widths: (input, hidden, ..., output).
        last_norm: whether the head ends with a batch norm; False where the loss has its own (Barlow Twins) or none.
        last_bias: whether the last linear has a bias.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), CrossRankBatchNorm1d(after), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    if last_norm:
        layers.append(CrossRankBatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*layers)


class DINOHead(nn.Module):
    """DINO's head (dino `vision_transformer.py`, `DINOHead`): three linears with biases and GELU between, no batch
    norm; rows of unit length; then bias-free prototypes, weight = gain * direction with gain 1 at first.

    Args:
        norm_last_layer: whether the gain stays 1
    """

    def __init__(self, embed_dim: int, hidden: int, bottleneck: int, out_dim: int, norm_last_layer: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = weight_norm(nn.Linear(bottleneck, out_dim, bias=False))
        gain = dict(self.last_layer.named_parameters())["parametrizations.weight.original0"]
        with torch.no_grad():
            gain.fill_(1)
        gain.requires_grad_(not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.layers(x)
        with no_autocast(rows):
            rows = l2_normalize(rows)
        logits: Tensor = self.last_layer(rows)
        return logits


class _PatchProjector(nn.Module):
    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embed_dim, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False)
        )

    def forward(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.layers(maps.movedim(1, -1))
        return projected.movedim(-1, 1)


def patch_projector(embed_dim: int, hidden: int) -> nn.Module:
    """SER's phi (arXiv 2603.06693): two bias-free 1x1 convolutions with GELU between, no norm, no positions.

    (n, width, h, w) to (n, hidden, h, w). Written as linears over the last dimension, which is one matrix product.
    """
    return _PatchProjector(embed_dim, hidden)
