"""What is computed of token maps: how far two of them agree, patch by patch, and where their variance lies.

Letters: n images, T tokens, D width, A the tokens f(g x) and B the tokens rho(g) f(x), each (n, T, D); a and b the same
after each image's own mean token is taken away, m the layer's mean token over images and patches.

    place           sum_t a_t . b_t / sum_t |a_t| |b_t|
    centred_cosine  mean_t cos(A_t - m, B_t - m)
    relative_error  ( sum_t |A_t - B_t|^2 / sum_t |A_t - m|^2 )^(1/2)
    retrieval       fraction of t for which B_t is nearest to A_t among B_1 .. B_T, by cos(A_t - m, B_u - m)

`place` is the cosine per patch, weighted by |a_t| |b_t|, so that a patch without content of its own does not count. One
vector repeated over the whole image has no a and no b: its place is not measurable, where its centred cosine is 1.
`retrieval` counts ties as they come out on average, so that such a map is at chance, 1 / T.

The variance of a layer's maps f(x_i), h w = T patches, splits into three parts that add up to 1 (two-way analysis of
variance without interaction):

    between images      T sum_i |mean_t f(x_i) - m|^2     what a whole image shares
    between positions   n sum_t |mean_i f(x_i)_t - m|^2   what a position has in every image
    inside images       the rest                          what tells the patches of one image apart

each over sum_i,t |f(x_i)_t - m|^2. Of n images that have nothing in common, 1 / n lies between positions by chance.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.backbones import Encoder

__all__ = [
    "FLOOR", "MapStatistics", "Tokens", "agreement", "cosines", "hits", "map_statistics", "mean_tokens",
    "normalised_maps", "retrieval", "shows_content",
]  # fmt: skip

# A map counts only where the root mean square of its own part, |a| / |A|, exceeds this: below, it is rounding.
FLOOR = 1e-3

# Cosines within this are equal: rounding in float32 decides no retrieval.
_TIE = 1e-6


@dataclass(frozen=True)
class Tokens:
    """Normalised tokens as their image's mean token and the rest.

    Attributes:
        own:  (n, T, D), without the mean token
        mean: (n, 1, D)
        size: (n, T), lengths of `own`
    """

    own: Tensor
    mean: Tensor
    size: Tensor

    @staticmethod
    def of(x: Tensor) -> "Tokens":
        """Tokens (n, D, T)."""
        x = x.mT
        mean = x.mean(1, keepdim=True)
        own = x - mean
        return Tokens(own, mean, own.norm(dim=2))

    def roll(self) -> "Tokens":
        """Every image has those of the one before it."""
        return Tokens(self.own.roll(1, 0), self.mean.roll(1, 0), self.size.roll(1, 0))

    def without(self, mean: Tensor) -> Tensor:
        """(n, T, D): the tokens without the layer's mean token (D, 1)."""
        return self.own + (self.mean - mean.T)

    def exceeds_rounding(self, lengths: Tensor) -> Tensor:
        """(n,) bool, of lengths (n, T): their root mean square is finite and more than FLOOR of the tokens'."""
        square = lengths.square().mean(1)
        whole = self.size.square().mean(1) + self.mean.square().sum((1, 2))
        return torch.isfinite(square) & (square > FLOOR**2 * whole)


def agreement(a: Tokens, b: Tokens, mean: Tensor) -> dict[str, Tensor]:
    """{metric: (n,)} of tokens A and B and the layer's mean token (D, 1); NaN where it is not measurable."""
    products = (a.own * b.own).sum(2)
    place = products.sum(1) / (a.size * b.size).sum(1)
    centred, long_a, long_b = _centred(a, b, products, mean)
    error = a.size.square().sum(1) + b.size.square().sum(1) - 2 * products.sum(1)
    error = error.clamp(min=0) + a.own.shape[1] * (a.mean - b.mean).square().sum((1, 2))
    varies = a.exceeds_rounding(long_a) & b.exceeds_rounding(long_b)
    metrics = {
        "place": (place, a.exceeds_rounding(a.size) & b.exceeds_rounding(b.size)),
        "centred_cosine": ((centred / (long_a * long_b).clamp(min=1e-12)).mean(1), varies),
        "relative_error": (error.sqrt() / long_a.square().sum(1).sqrt().clamp(min=1e-12), varies),
    }
    return {metric: value.masked_fill(~known, float("nan")) for metric, (value, known) in metrics.items()}


def retrieval(a: Tokens, b: Tokens, mean: Tensor, near: Tensor) -> dict[str, Tensor]:
    """{metric: (n,)} in percent: whether the nearest of the image's tokens is the partner, or (T, T) `near` it; NaN of
    maps of one token."""
    if len(near) < 2:
        return dict.fromkeys(("retrieval", "retrieval_near"), a.size.new_full((len(a.size),), float("nan")))
    own = cosines(a.without(mean), b.without(mean))
    exact, around = hits(own, own, near)
    return {"retrieval": 100 * exact.mean(-1), "retrieval_near": 100 * around.mean(-1)}


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """(..., T, D) and (..., U, D) to (..., T, U); of a zero vector 0."""
    x, y = (tokens / tokens.norm(dim=-1, keepdim=True).clamp(min=1e-6) for tokens in (x, y))
    return x @ y.mT


def hits(searched: Tensor, own: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Of cosines to all tokens that are searched (..., T, U), and to those of the same image (..., T, T): the chance
    (..., T) that the nearest is the partner, and that it is `near` the partner (T, T), drawing among equals."""
    best = searched.amax(-1, keepdim=True) - _TIE
    equals, among_own = (searched >= best).sum(-1), own >= best
    return among_own.diagonal(dim1=-2, dim2=-1) / equals, (among_own & near).sum(-1) / equals


def _centred(a: Tokens, b: Tokens, products: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(A_t - m) . (B_t - m), (n, T), and the lengths of both; from the own parts, which spares passes over tokens."""
    u, v = a.mean - mean.T, b.mean - mean.T  # (n, 1, D)
    both = torch.cat([u, v], dim=1).mT
    from_a, from_b = a.own @ both, b.own @ both  # (n, T, 2)
    centred = products + from_a[..., 1] + from_b[..., 0] + (u * v).sum(2)
    long_a = a.size.square() + 2 * from_a[..., 0] + u.square().sum(2)
    long_b = b.size.square() + 2 * from_b[..., 1] + v.square().sum(2)
    return centred, long_a.clamp(min=0).sqrt(), long_b.clamp(min=0).sqrt()


# An image whose channels vary by less than this (in units of its normalised values; an 8-bit level is about 0.017) is
# of one colour: nothing in it has a place.
_ONE_COLOUR = 1e-3


@dataclass(frozen=True)
class MapStatistics:
    """Of one layer's normalised maps.

    Attributes:
        mean:      m, (D, 1)
        fractions: of the variance, "between_images", "between_positions" and "inside_images"; NaN where the maps do not
                   vary
        images:    number of them
        patches:   of a map
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
    squares: dict[int, Tensor] = {}  # of all values, summed
    like: dict[int, Tensor] = {}  # a layer's device and dtype
    images = 0
    for batch in batches:
        if not len(batch):
            continue
        images += len(batch)
        for layer, m in normalised_maps(encoder, batch, layers).items():
            tokens = m.flatten(2)
            like[layer] = m.new_zeros(())
            parts = (tokens.sum(0), tokens.mean(2).double().square().sum(), tokens.square().sum((1, 2)).double().sum())
            for sums, value in zip((positions, means, squares), parts, strict=True):
                value = value.double().cpu()
                sums[layer] = sums[layer] + value if layer in sums else value
    return {
        layer: _statistics(positions[layer], means[layer], squares[layer], images, like[layer]) for layer in positions
    }


def _statistics(positions: Tensor, means: Tensor, squares: Tensor, images: int, like: Tensor) -> MapStatistics:
    patches = positions.shape[1]
    mean = positions.sum(1, keepdim=True) / (images * patches)
    common = mean.square().sum()
    total = squares - images * patches * common
    # below this the variance is rounding: the maps are one constant
    varies = bool(total > 1e-10 * squares) and bool(torch.isfinite(total))
    between_images = patches * (means - images * common) / total
    between_positions = images * (positions / images - mean).square().sum() / total
    fractions = {"between_images": float(between_images), "between_positions": float(between_positions)}
    fractions = {name: min(1.0, max(0.0, fraction)) if varies else float("nan") for name, fraction in fractions.items()}
    fractions["inside_images"] = max(0.0, 1 - sum(fractions.values())) if varies else float("nan")
    return MapStatistics(mean.to(like), fractions, images, patches)


def mean_tokens(encoder: Encoder, batches: Iterable[Tensor], layers: Sequence[int]) -> dict[int, Tensor]:
    """{layer: (D, 1)}, over patches and images, of batches (n, 3, H, W)."""
    return {layer: statistics.mean for layer, statistics in map_statistics(encoder, batches, layers).items()}
