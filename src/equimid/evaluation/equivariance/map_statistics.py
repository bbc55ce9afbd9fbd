"""Token maps as equivariance is measured on them: normalised, their mean token, and where their variance lies.

Letters: n images, D width, h w patches, m_l the mean token of layer l over images and patches.

The variance of a map splits into three parts that add up to 1 (two-way analysis of variance without interaction):

    between images      T sum_i |mean_t f(x_i) - m_l|^2     what a whole image shares
    between positions   n sum_t |mean_i f(x_i)_t - m_l|^2   what a position has in every image
    inside images       the rest                            what tells the patches of one image apart

each over sum_i,t |f(x_i)_t - m_l|^2. Of n images that have nothing in common, 1 / n lies between positions by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder

__all__ = ["MapStatistics", "map_statistics", "mean_tokens", "normalised_maps", "shows_content"]

# An image whose channels vary by less than this (in units of its normalised values; an 8-bit level is about 0.017) is
# of one colour: nothing in it has a place.
_ONE_COLOUR = 1e-3


@dataclass(frozen=True)
class MapStatistics:
    """Of one layer's normalised maps.

    mean:    m_l, (D, 1)
    fractions: of the variance: "between_images", "between_positions", "inside_images"; NaN where the maps do not vary
    images:  how many they are of
    patches: of a map
    """

    mean: Tensor
    fractions: dict[str, float]
    images: int
    patches: int


def normalised_maps(encoder: Encoder, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (n, D, h, w)}, each token through a layer norm without parameters."""
    maps = encoder.token_maps(images, layers)
    return {layer: F.layer_norm(m.movedim(1, -1).float(), m.shape[1:2]).movedim(-1, 1) for layer, m in maps.items()}


def shows_content(images: Tensor) -> Tensor:
    """(n,) bool, of images (n, 3, H, W): those that are not of one colour."""
    content: Tensor = (images.amax((2, 3)) - images.amin((2, 3))).amax(1) > _ONE_COLOUR
    return content


def map_statistics(encoder: Encoder, batches: Iterable[Tensor], layers: Sequence[int]) -> dict[int, MapStatistics]:
    """Of every layer, from batches (n, 3, H, W); {} where they hold no image."""
    positions: dict[int, Tensor] = {}  # (D, h w), summed over images
    means: dict[int, Tensor] = {}  # squared lengths of the mean tokens of images, summed
    upright: dict[int, Tensor] = {}  # of all values, summed
    like: dict[int, Tensor] = {}  # a layer's device and dtype
    images = 0
    for batch in batches:
        if not len(batch):
            continue
        images += len(batch)
        for layer, m in normalised_maps(encoder, batch, layers).items():
            tokens = m.flatten(2)
            like[layer] = m.new_zeros(())
            found = (tokens.sum(0), tokens.mean(2).double().square().sum(), tokens.square().sum((1, 2)).double().sum())
            for sums, value in zip((positions, means, upright), found, strict=True):
                value = value.double().cpu()
                sums[layer] = sums[layer] + value if layer in sums else value
    return {
        layer: _statistics(positions[layer], means[layer], upright[layer], images, like[layer]) for layer in positions
    }


def _statistics(positions: Tensor, means: Tensor, upright: Tensor, images: int, like: Tensor) -> MapStatistics:
    patches = positions.shape[1]
    mean = positions.sum(1, keepdim=True) / (images * patches)
    common = mean.square().sum()
    total = upright - images * patches * common
    # below this the variance is rounding: the maps are one constant
    varies = bool(total > 1e-10 * upright) and bool(torch.isfinite(total))
    between_images = patches * (means - images * common) / total
    between_positions = images * (positions / images - mean).square().sum() / total
    fractions = {"between_images": float(between_images), "between_positions": float(between_positions)}
    fractions = {name: min(1.0, max(0.0, fraction)) if varies else float("nan") for name, fraction in fractions.items()}
    fractions["inside_images"] = max(0.0, 1 - sum(fractions.values())) if varies else float("nan")
    return MapStatistics(mean.to(like), fractions, images, patches)


def mean_tokens(encoder: Encoder, batches: Iterable[Tensor], layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (D, 1)}, over patches and images, of batches (n, 3, H, W)."""
    return {layer: found.mean for layer, found in map_statistics(encoder, batches, layers).items()}
