"""The patch-wise contrastive loss of SER (arXiv 2603.06693, equation of L_eq), memory linear in the patches.

Letters: M paired patches of this rank, D columns, I(p) the image of patch p, pi(p) its pair, s cosine, A anchors
(rows of this rank), K keys (rows of all ranks), t temperature.

    l_p = -s(p, pi(p)) / t + log( exp(s(p, pi(p)) / t) + sum over q with I(q) != I(p) of exp(s(p, q) / t) )

over the 2M patches of both views; other patches of the same image are absent. The sum over other images is one
log-sum-exp per anchor: similarities are computed in blocks, forgotten, and computed again in the backward pass.
"""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from equimid.distributed import gather_detached, gather_with_gradient, mean_over_ranks, world_size
from equimid.losses.checks import check_temperature
from equimid.precision import no_autocast, unit_rows

__all__ = ["patch_ntxent", "patch_ntxent_cross_view"]

BLOCK = 1024


def patch_ntxent(z0: Tensor, z1: Tensor, image_ids: Tensor, temperature: float) -> Tensor:
    """Canonical form: both views' patches are anchors and keys.

    Args:
        z0, z1: (M, D), row m of z0 pairs with row m of z1; need not be normalised. M may differ between ranks,
            also be 0. An input without gradient (momentum tokens) costs no gradient.
        image_ids: (M,) integers; equal ids are one image, on whichever rank: ids must be unique over all ranks.
        temperature: positive.

    Returns:
        Scalar in float32 (float64 for float64 input), inside any autocast. The mean over ranks of the value is the
        mean over all 2M patches of all ranks; after DDP's mean so is the gradient. With a single image in all there
        are no negatives and it is 0.

    Raises:
        ValueError: shapes do not match, or the temperature is not positive.
    """
    _check(z0, z1, image_ids, temperature)
    with no_autocast(z0):
        z0, z1 = unit_rows(z0), unit_rows(z1)
        positives = (z0 * z1).sum(1).repeat(2) / temperature
        ids = image_ids.repeat(2)
        z = torch.cat([z0, z1])
        if world_size() == 1 and temperature >= _SYMMETRIC_FROM:
            negatives = _symmetric_lse(z, ids, temperature, (z0.requires_grad, z1.requires_grad))
        else:
            keys = gather_with_gradient(z)
            negatives = _lse(z, keys, ids, gather_detached(ids), temperature)
        return mean_over_ranks(torch.logaddexp(positives, negatives) - positives)


def patch_ntxent_cross_view(anchors: Tensor, keys: Tensor, image_ids: Tensor, temperature: float) -> Tensor:
    """The release's form: anchors of one view, positives and negatives from the other view only.

    Arguments, value and errors as for `patch_ntxent`; row m of `anchors` pairs with row m of `keys`.
    """
    _check(anchors, keys, image_ids, temperature)
    with no_autocast(anchors):
        a, k = unit_rows(anchors), unit_rows(keys)
        positives = (a * k).sum(1) / temperature
        negatives = _lse(a, gather_with_gradient(k), image_ids, gather_detached(image_ids), temperature)
        return mean_over_ranks(torch.logaddexp(positives, negatives) - positives)


def _check(z0: Tensor, z1: Tensor, image_ids: Tensor, temperature: float) -> None:
    if z0.ndim != 2 or z0.shape != z1.shape or image_ids.shape != z0.shape[:1]:
        shapes = tuple(z0.shape), tuple(z1.shape), tuple(image_ids.shape)
        raise ValueError(f"expected two (M, D) and image_ids (M,), found {shapes[0]}, {shapes[1]} and {shapes[2]}")
    check_temperature(temperature)


# ---- log-sum-exp over the keys of other images, in blocks ------------------------------------------------------

# Below this temperature exp((s - 1) / t) can underflow in float32 for every key of an anchor.
_SYMMETRIC_FROM = 0.05


def _blocks(rows: int, start: int = 0) -> list[slice]:
    return [slice(a, min(a + BLOCK, start + rows)) for a in range(start, start + rows, BLOCK)]


class _Mask:
    """Which pairs of rows belong to one image; blocks whose images cannot meet skip the comparison."""

    def __init__(self, row_ids: Tensor, key_ids: Tensor, rows: list[slice], keys: list[slice]) -> None:
        self.row_ids, self.key_ids = row_ids, key_ids
        self.row_ranges, self.key_ranges = self._ranges(row_ids, rows), self._ranges(key_ids, keys)

    @staticmethod
    def _ranges(ids: Tensor, blocks: list[slice]) -> list[tuple[int, int]] | None:
        if ids.device.type == "meta" or not blocks:
            return None
        ends = torch.stack([torch.stack(torch.aminmax(ids[b])) for b in blocks])
        return [(low, high) for low, high in ends.tolist()]

    def fill(self, block: Tensor, i: int, rows: slice, j: int, keys: slice, value: float) -> None:
        """Write `value` over the same-image pairs of block (i, j)."""
        if self.row_ranges is not None and self.key_ranges is not None:
            (low, high), (other_low, other_high) = self.row_ranges[i], self.key_ranges[j]
            if high < other_low or other_high < low:
                return
        block.masked_fill_(self.row_ids[rows, None] == self.key_ids[None, keys], value)


class _MaskedLSE(torch.autograd.Function):
    """lse_a = log sum over keys k of other images of exp(a . k / t), rows against any keys."""

    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, ids: Tensor, key_ids: Tensor, temperature: float) -> Tensor:
        ctx.rows, ctx.columns = _blocks(len(anchors)), _blocks(len(keys))
        ctx.mask, ctx.scale = _Mask(ids, key_ids, ctx.rows, ctx.columns), 1 / temperature
        lse = anchors.new_full((len(anchors),), -math.inf)
        for i, a in enumerate(ctx.rows):
            for j, k in enumerate(ctx.columns):
                s = (anchors[a] @ keys[k].T).mul_(ctx.scale)
                ctx.mask.fill(s, i, a, j, k, -math.inf)
                lse[a] = torch.logaddexp(lse[a], torch.logsumexp(s, dim=1))
        ctx.save_for_backward(anchors, keys, lse)
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        anchors, keys, lse = ctx.saved_tensors
        need_anchors, need_keys = ctx.needs_input_grad[:2]
        grad_anchors = torch.zeros_like(anchors) if need_anchors else None
        grad_keys = torch.zeros_like(keys) if need_keys else None
        weight = (grads[0] * ctx.scale)[:, None]
        # an anchor without negatives has lse -inf: nothing of it is in the sum
        lse = lse.masked_fill(lse == -math.inf, math.inf)[:, None]
        for i, a in enumerate(ctx.rows):
            for j, k in enumerate(ctx.columns):
                p = (anchors[a] @ keys[k].T).mul_(ctx.scale).sub_(lse[a]).exp_().mul_(weight[a])
                ctx.mask.fill(p, i, a, j, k, 0.0)
                if grad_anchors is not None:
                    grad_anchors[a].addmm_(p, keys[k])
                if grad_keys is not None:
                    grad_keys[k].addmm_(p.T, anchors[a])
        return grad_anchors, grad_keys, None, None, None


def _lse(anchors: Tensor, keys: Tensor, ids: Tensor, key_ids: Tensor, temperature: float) -> Tensor:
    return cast(Tensor, _MaskedLSE.apply(anchors, keys, ids, key_ids, temperature))


class _SymmetricMaskedLSE(torch.autograd.Function):
    """The same where anchors and keys are one set of unit rows: only blocks on and above the diagonal.

    The maximum is fixed at 1 / t, which bounds every similarity of unit rows. The first half of the rows or the
    second may be without gradient (`live`): their gradient products are left out.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, ids: Tensor, temperature: float, live: tuple[bool, bool]) -> Tensor:
        half = len(z) // 2
        ctx.blocks = _blocks(half) + _blocks(half, half)
        ctx.live = [live[b.start >= half] for b in ctx.blocks]
        ctx.mask, ctx.scale = _Mask(ids, ids, ctx.blocks, ctx.blocks), 1 / temperature
        total = z.new_zeros(len(z))
        for i, a, j, b in _upper(ctx.blocks):
            e = _exp_block(z, a, b, ctx.scale)
            ctx.mask.fill(e, i, a, j, b, 0.0)
            total[a] += e.sum(1)
            if i != j:
                total[b] += e.sum(0)
        ctx.save_for_backward(z, total)
        lse: Tensor = total.log() + ctx.scale
        return lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        z, total = ctx.saved_tensors
        weight = (grads[0] * ctx.scale / total).masked_fill(total == 0, 0.0)
        grad = torch.zeros_like(z)
        for i, a, j, b in _upper(ctx.blocks):
            if not (ctx.live[i] or ctx.live[j]):
                continue
            e = _exp_block(z, a, b, ctx.scale)
            ctx.mask.fill(e, i, a, j, b, 0.0)
            # similarity (p, q) is in the sums of both p and q
            e.mul_(weight[a, None] + weight[None, b])
            if ctx.live[i]:
                grad[a].addmm_(e, z[b])
            if i != j and ctx.live[j]:
                grad[b].addmm_(e.T, z[a])
        return grad, None, None, None


def _upper(blocks: list[slice]) -> Iterator[tuple[int, slice, int, slice]]:
    for i, a in enumerate(blocks):
        for j in range(i, len(blocks)):
            yield i, a, j, blocks[j]


def _exp_block(z: Tensor, a: slice, b: slice, scale: float) -> Tensor:
    return (z[a] @ z[b].T).sub_(1.0).mul_(scale).exp_()


def _symmetric_lse(z: Tensor, ids: Tensor, temperature: float, live: tuple[bool, bool]) -> Tensor:
    return cast(Tensor, _SymmetricMaskedLSE.apply(z, ids, temperature, live))
