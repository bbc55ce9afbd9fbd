"""How far two sets of tokens agree, patch by patch: place, retrieval, and the cosines beside them.

Letters: n images, T tokens, D width, A the tokens f(g x) and B the tokens rho(g) f(x), each (n, T, D); a and b the same
after each image's own mean token is taken away, m the layer's mean token over images and patches.

    place           sum_t a_t . b_t / sum_t |a_t| |b_t|
    centred_cosine  mean_t cos(A_t - m, B_t - m)
    relative_error  ( sum_t |A_t - B_t|^2 / sum_t |A_t - m|^2 )^(1/2)
    retrieval       fraction of t for which B_t is nearest to A_t among B_1 .. B_T, by cos(A_t - m, B_u - m)

`place` is the cosine per patch, weighted by |a_t| |b_t|, so that a patch without content of its own does not count. One
vector repeated over the whole image has no a and no b: its place is not measurable, where its centred cosine is 1.
`retrieval` counts ties as they come out on average, so that such a map is at chance, 1 / T.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FLOOR", "Tokens", "agreement", "cosines", "hits", "retrieval"]

# A map counts only where the root mean square of its own part, |a| / |A|, exceeds this: below, it is rounding.
FLOOR = 1e-3

# Cosines within this are equal: rounding in float32 decides no retrieval.
_TIE = 1e-6


@dataclass(frozen=True)
class Tokens:
    """Normalised tokens as their image's mean token and the rest.

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
        found: Tensor = torch.isfinite(square) & (square > FLOOR**2 * whole)
        return found


def agreement(a: Tokens, b: Tokens, mean: Tensor) -> dict[str, Tensor]:
    """{metric: (n,)} of tokens A and B and the layer's mean token (D, 1); NaN where it is not measurable."""
    products = (a.own * b.own).sum(2)
    place = products.sum(1) / (a.size * b.size).sum(1)
    centred, long_a, long_b = _centred(a, b, products, mean)
    error = a.size.square().sum(1) + b.size.square().sum(1) - 2 * products.sum(1)
    error = error.clamp(min=0) + a.own.shape[1] * (a.mean - b.mean).square().sum((1, 2))
    varies = a.exceeds_rounding(long_a) & b.exceeds_rounding(long_b)
    found = {
        "place": (place, a.exceeds_rounding(a.size) & b.exceeds_rounding(b.size)),
        "centred_cosine": ((centred / (long_a * long_b).clamp(min=1e-12)).mean(1), varies),
        "relative_error": (error.sqrt() / long_a.square().sum(1).sqrt().clamp(min=1e-12), varies),
    }
    return {metric: value.masked_fill(~known, float("nan")) for metric, (value, known) in found.items()}


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
