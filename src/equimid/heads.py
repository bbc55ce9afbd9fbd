"""Projectors and predictors: what sits between a feature and a loss, and is thrown away after training."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from equimid.distributed import CrossRankBatchNorm1d

__all__ = ["mlp_head", "patch_projector"]


def mlp_head(widths: Sequence[int]) -> nn.Sequential:
    """MoCo-v3's and Barlow Twins' head: bias-free linears, cross-rank batch norm and ReLU between them, and at the
    end a batch norm without affine parameters. `widths` = (input, hidden, ..., output).

    Source: moco-v3 `moco/builder.py`, `_build_mlp`; linears keep torch's default initialisation.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after, bias=False), CrossRankBatchNorm1d(after), nn.ReLU(inplace=True)]
    layers += [nn.Linear(widths[-2], widths[-1], bias=False), CrossRankBatchNorm1d(widths[-1], affine=False)]
    return nn.Sequential(*layers)


class _PatchProjector(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, hidden, bias=False)
        )

    def forward(self, maps: Tensor) -> Tensor:
        projected: Tensor = self.layers(maps.movedim(1, -1))
        return projected.movedim(-1, 1)


def patch_projector(width: int, hidden: int) -> nn.Module:
    """SER's phi (arXiv 2603.06693): two bias-free 1x1 convolutions with GELU between, no norm, no positions.

    (n, width, h, w) to (n, hidden, h, w). Written as linears over the last dimension, which is one matrix product.
    """
    return _PatchProjector(width, hidden)
