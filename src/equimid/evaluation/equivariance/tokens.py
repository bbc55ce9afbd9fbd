"""Token maps as equivariance is measured on them: normalised, and their mean token."""

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder

__all__ = ["mean_tokens", "normalised_maps"]


def normalised_maps(encoder: Encoder, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (n, D, h, w)}, each token through a layer norm without parameters."""
    maps = encoder.token_maps(images, layers)
    return {layer: F.layer_norm(m.movedim(1, -1).float(), m.shape[1:2]).movedim(-1, 1) for layer, m in maps.items()}


def mean_tokens(encoder: Encoder, batches: Iterable[Tensor], layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (D, 1)}, over patches and images, of batches (n, 3, S, S)."""
    sums: dict[int, Tensor] = {}
    count = 0
    for images in batches:
        maps = normalised_maps(encoder, images, layers)
        for layer, m in maps.items():
            total = m.sum((0, 2, 3)).double().cpu()
            sums[layer] = sums[layer] + total if layer in sums else total
        count += len(images) * m.shape[2] * m.shape[3]
    return {layer: (total[:, None] / count).to(m) for layer, total in sums.items()}
