"""The patch-wise contrastive loss of SER (arXiv 2603.06693, equation of L_eq), memory linear in the patches.

Letters: M paired patches of this rank, D columns, I(p) the image of patch p, x(p) its place on the grid, pi(p) its
pair, s cosine, A anchors (rows of this rank), K keys (rows of all ranks), t temperature.

    l_p = -s(p, pi(p)) / t + log( exp(s(p, pi(p)) / t) + sum over q with I(q) != I(p) of exp(s(p, q) / t) )

over the 2M patches of both views; other patches of the same image are absent. That is the paper's form. One vector per
image, repeated over all its patches, is an optimum of it (docs/methods.md). With positions given, patches of the same
image are negatives too, but for those within `distance` of the partner on the grid:

    the sum runs over q with I(q) != I(p) or |x(q) - x(p)| > distance, the larger of both coordinates' differences.

The sum over negatives is one log-sum-exp per anchor: similarities are computed in tiles, forgotten, and computed again
in the backward pass. Time grows as M^2 D, memory as M D. Nothing is read back from the device, and equal input gives
equal bits.

On a GPU it is the same code: tiles through the device's matrix products. FlexAttention's log-sum-exp fuses what is
between the products and is timed beside it by the loss benchmark; it is not the default, for its gradient cannot be
run on the CPU and neither was measured on a GPU yet.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from equimid.distributed import gather_detached, gather_with_gradient, mean_over_ranks, row_counts, world_size
from equimid.losses.checks import check_temperature
from equimid.precision import l2_normalize, no_autocast

__all__ = ["patch_ntxent", "patch_ntxent_cross_view"]


def patch_ntxent(
    z0: Tensor, z1: Tensor, image_ids: Tensor, temperature: float, positions: Tensor | None = None, distance: int = 1
) -> Tensor:
    """Canonical form: both views' patches are anchors and keys.

    Args:
        z0, z1: (M, D), row m of z0 pairs with row m of z1; need not be normalised. M may differ between ranks,
            also be 0. An input without gradient (momentum tokens) costs no gradient.
        image_ids: (M,) integers; equal ids are one image, on whichever rank: ids must be unique over all ranks.
        temperature: positive.
        positions: (M, 2) integers, row and column of each pair on the grid that both views lie on: patches of the
            same image are then negatives. None = they are not (the paper).
        distance: patches of the same image within so many rows and columns of each other are no negatives, 0 or more.

    Returns:
        Scalar in float32 (float64 for float64 input), inside any autocast. The mean over ranks of the value is the
        mean over all 2M patches of all ranks; after DDP's mean so is the gradient. Without any negative (a single image
        in all, and no positions) it is 0.

    Raises:
        ValueError: shapes do not match, the temperature is not positive, or the distance is negative.

    Example:
        >>> z0, z1 = torch.randn(2, 4 * 9, 32)  # 4 images, 9 patches each
        >>> loss = patch_ntxent(z0, z1, torch.arange(4).repeat_interleave(9), temperature=0.3)
    """
    _check(z0, z1, image_ids, temperature, positions, distance)
    with no_autocast(z0):
        z0, z1 = l2_normalize(z0), l2_normalize(z1)
        patches = _Patches(image_ids, positions, distance)
        if world_size() == 1 and temperature >= _BOUNDED_FROM:
            positives, negatives = _SymmetricLSE.apply(z0, z1, patches, temperature)
        else:
            z = torch.cat([z0, z1])
            positives = (z0 * z1).sum(1) / temperature
            negatives = _gathered_lse(z, z, patches.map(lambda x: torch.cat([x, x])), temperature)
        positives, negatives = positives.repeat(2), negatives.flatten()
        return mean_over_ranks(torch.logaddexp(positives, negatives) - positives)


def patch_ntxent_cross_view(
    anchors: Tensor, keys: Tensor, image_ids: Tensor, temperature: float, positions: Tensor | None = None,
    distance: int = 1,
) -> Tensor:  # fmt: skip
    """The release's form: anchors of one view, positives and negatives from the other view only.

    Arguments, value and errors as for `patch_ntxent`; row m of `anchors` pairs with row m of `keys`.

    Example:
        >>> anchors, keys = torch.randn(2, 4 * 9, 32)
        >>> loss = patch_ntxent_cross_view(anchors, keys, torch.arange(4).repeat_interleave(9), temperature=0.3)
    """
    _check(anchors, keys, image_ids, temperature, positions, distance)
    with no_autocast(anchors):
        a, k = l2_normalize(anchors), l2_normalize(keys)
        positives = (a * k).sum(1) / temperature
        negatives = _gathered_lse(a, k, _Patches(image_ids, positions, distance), temperature)
        return mean_over_ranks(torch.logaddexp(positives, negatives) - positives)


@dataclass(frozen=True)
class _Patches:
    """Which rows are no negatives of each other: those of one image, all of them or those that lie near.

    Attributes:
        ids: (M,);  positions: (M, 2) or None
    """

    ids: Tensor
    positions: Tensor | None
    distance: int

    def map(self, edit: Callable[[Tensor], Tensor]) -> "_Patches":
        return replace(self, ids=edit(self.ids), positions=None if self.positions is None else edit(self.positions))


def _gathered_lse(anchors: Tensor, keys: Tensor, patches: _Patches, temperature: float) -> Tensor:
    counts = row_counts(keys)
    everyone = gather_with_gradient(keys, counts)
    of_keys = patches.map(lambda x: gather_detached(x, counts))
    lse: Tensor = _LSE.apply(anchors, everyone, patches, of_keys, temperature)
    return lse


def _check(
    z0: Tensor, z1: Tensor, image_ids: Tensor, temperature: float, positions: Tensor | None, distance: int
) -> None:
    if z0.ndim != 2 or z0.shape != z1.shape or image_ids.shape != z0.shape[:1]:
        shapes = tuple(z0.shape), tuple(z1.shape), tuple(image_ids.shape)
        raise ValueError(f"expected two (M, D) and image_ids (M,), found {shapes[0]}, {shapes[1]} and {shapes[2]}")
    if positions is not None and (positions.shape != (len(z0), 2) or positions.is_floating_point()):
        raise ValueError(
            f"positions must be integers (M, 2) = {(len(z0), 2)}, found {positions.dtype} {tuple(positions.shape)}"
        )
    if distance < 0:
        raise ValueError(f"distance is {distance}; it must be a number of patches of 0 or more")
    check_temperature(temperature)


# ---- log-sum-exp over the keys of other images, tile by tile ---------------------------------------------------

# Rows and columns of the largest tile of similarities. Measured on two cores: a tile of the CPU stays in the cache
# from its matrix product to its last sum. A GPU instead wants few launches (about ten for each tile), each of them
# longer than a launch takes: 32 MiB in float32, about the cache of a large card; not measured on one yet.
TILES = {"cpu": (512, 1024), "cuda": (1024, 8192)}

# From this temperature on, exp(s / t) of unit rows and its sums stay within float32 without subtracting a maximum.
_BOUNDED_FROM = 1 / 60

# A tile where more images than this meet is masked by comparing ids, not image by image.
_MANY = 64


def symmetric_tiles(patches: int, device: str) -> Iterator[tuple[int, slice, int, slice]]:
    """(view, rows, view, columns): of the symmetric matrix of two views' similarities, every pair of patches once.

    Tiles on the diagonal have equal rows and columns and hold their pairs twice.
    """
    rows, columns = TILES.get(device, TILES["cuda"])
    for view in (0, 1):
        for a in spans(0, patches, rows):
            yield view, a, view, a
            yield from ((view, a, view, b) for b in spans(a.stop, patches, columns))
            if view == 0:
                yield from ((0, a, 1, b) for b in spans(0, patches, columns))


def spans(start: int, stop: int, length: int) -> list[slice]:
    """`start` to `stop` in pieces of at most this length."""
    return [slice(a, min(a + length, stop)) for a in range(start, stop, length)]


class _Tiles:
    """Similarities of one tile at a time in one piece of memory, and which of them are no negatives.

    On the CPU rows and keys are sorted by image, and then the pairs of an image are a rectangle. On another device
    ids are compared there, for reading them would wait for it.
    """

    def __init__(self, rows: _Patches, keys: _Patches, like: Tensor) -> None:
        height, width = TILES.get(like.device.type, TILES["cuda"])
        # a tile on the diagonal is square
        height, width = min(height, len(rows.ids)), min(max(height, width), len(keys.ids))
        self.memory, self.ones = like.new_empty(height * width), like.new_ones(max(height, width))
        self.rows, self.keys = rows, keys
        self.runs = _runs(rows.ids, keys.ids) if _on_host(like.device) else None
        # where all images lie on one grid in one order, which patches are near is the same for all of them
        alike = self.runs is not None and _one_grid(rows, *self.runs[0]) and _one_grid(keys, *self.runs[1])
        self.near = self._near(slice(self.runs[0][1][0]), slice(self.runs[1][1][0])) if alike and self.runs else None

    def similarities(self, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """scale x y^T, valid until the next call."""
        s = self.memory[: len(x) * len(y)].view(len(x), len(y))
        return torch.addmm(s, x, y.T, beta=0, alpha=scale, out=s)

    def fill(self, tile: Tensor, a: slice, b: slice, value: float) -> None:
        """Write `value` over the pairs that are no negatives."""
        if self.runs is not None:
            (starts, stops), (key_starts, key_stops) = self.runs
            first = max(bisect_right(stops, a.start), bisect_right(key_stops, b.start))
            last = min(bisect_left(starts, a.stop), bisect_left(key_starts, b.stop))
            if last - first <= _MANY:
                for run in range(first, last):
                    down = slice(max(starts[run], a.start), min(stops[run], a.stop))
                    right = slice(max(key_starts[run], b.start), min(key_stops[run], b.stop))
                    pairs = tile[
                        down.start - a.start : down.stop - a.start, right.start - b.start : right.stop - b.start
                    ]
                    near = self._near_in_image(run, down, right)
                    if near is None:
                        pairs.fill_(value)
                    else:
                        pairs.masked_fill_(near, value)
                return
        same = self.rows.ids[a, None] == self.keys.ids[None, b]
        near = self._near(a, b)
        tile.masked_fill_(same if near is None else same.logical_and_(near), value)

    def _near_in_image(self, run: int, down: slice, right: slice) -> Tensor | None:
        """`_near` of rows and keys of one image."""
        if self.near is None or self.runs is None:
            return self._near(down, right)
        (starts, _), (key_starts, _) = self.runs
        i, j = starts[run], key_starts[run]
        return self.near[down.start - i : down.stop - i, right.start - j : right.stop - j]

    def _near(self, a: slice, b: slice) -> Tensor | None:
        """Of the patches of rows and keys, those within the distance of each other; None where all count as such."""
        if self.rows.positions is None or self.keys.positions is None:
            return None
        near: Tensor | None = None
        for row, key in zip(self.rows.positions[a].unbind(1), self.keys.positions[b].unbind(1), strict=True):
            within = (row[:, None] - key[None]).abs_() <= self.rows.distance
            near = within if near is None else near.logical_and_(within)
        return near


def _add_product(total: Tensor, x: Tensor, y: Tensor) -> None:
    torch.addmm(total, x, y, out=total)  # FlopCounterMode does not count addmm_


def _one_grid(patches: _Patches, starts: list[int], stops: list[int]) -> bool:
    """Whether the images have all patches of one grid, in one order, and nothing lies between them."""
    if patches.positions is None or not starts or len(patches.ids) != len(starts) * stops[0]:
        return False
    positions = patches.positions.unflatten(0, (len(starts), stops[0]))
    return stops == [stops[0] * (n + 1) for n in range(len(stops))] and bool((positions == positions[0]).all())


def _on_host(device: torch.device) -> bool:
    return device.type == "cpu"


def _runs(row_ids: Tensor, key_ids: Tensor) -> list[tuple[list[int], list[int]]]:
    """Starts and stops, among sorted rows and among sorted keys, of the images that have both."""
    places = []
    for ids in (row_ids, key_ids):
        images, counts = torch.unique_consecutive(ids, return_counts=True)
        stops = counts.cumsum(0)
        places.append({i: (a, b) for i, a, b in zip(*map(Tensor.tolist, (images, stops - counts, stops)), strict=True)})
    both = [i for i in places[0] if i in places[1]]
    return [([p[i][0] for i in both], [p[i][1] for i in both]) for p in places]


class _Order:
    """Rows sorted by image, where that is of use and they are not yet."""

    def __init__(self, ids: Tensor) -> None:
        needed = _on_host(ids.device) and bool((ids[1:] < ids[:-1]).any())
        self.order = torch.argsort(ids, stable=True) if needed else None

    def sort(self, x: Tensor) -> Tensor:
        return x if self.order is None else x[self.order]

    def restore(self, x: Tensor) -> Tensor:
        return x if self.order is None else torch.empty_like(x).index_copy_(0, self.order, x)


class _SymmetricLSE(torch.autograd.Function):
    """lse_p = log sum over q of other images of exp(z_p . z_q / t), both running over the unit rows of two views.

    (M, D) and (M, D) to the similarities of pairs / t, (M,), and (2, M). A similarity is computed once for both of its
    patches. A view without gradient (a momentum network's) costs no product of its gradient.
    """

    @staticmethod
    def forward(ctx: Any, z0: Tensor, z1: Tensor, patches: _Patches, temperature: float) -> tuple[Tensor, Tensor]:
        ctx.order, ctx.scale = _Order(patches.ids), 1 / temperature
        positives = torch.linalg.vecdot(z0, z1).mul_(ctx.scale)
        z, ctx.patches = (ctx.order.sort(z0), ctx.order.sort(z1)), patches.map(ctx.order.sort)
        tiles = _Tiles(ctx.patches, ctx.patches, z0)
        total = z0.new_zeros(2, len(z0))
        for i, a, j, b in symmetric_tiles(len(z0), z0.device.type):
            e = tiles.similarities(z[i][a], z[j][b], ctx.scale).exp_()
            tiles.fill(e, a, b, 0.0)
            total[i, a].addmv_(e, tiles.ones[: e.shape[1]])
            if (i, a) != (j, b):
                total[j, b].addmv_(e.T, tiles.ones[: e.shape[0]])
        ctx.save_for_backward(*z, total)
        return positives, torch.stack([ctx.order.restore(view) for view in total.log()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        *z, total = ctx.saved_tensors
        # a patch without negatives has no sum, and nothing to pull at
        weight = torch.stack([ctx.order.sort(view) for view in grads[1]]).mul_(ctx.scale).div_(total)
        weight.masked_fill_(total == 0, 0.0)
        gradients = [
            torch.zeros_like(view) if need else None for view, need in zip(z, ctx.needs_input_grad[:2], strict=True)
        ]
        tiles = _Tiles(ctx.patches, ctx.patches, total)
        weights = torch.empty_like(tiles.memory)
        for i, a, j, b in symmetric_tiles(total.shape[1], total.device.type):
            left, right = gradients[i], gradients[j]
            if left is None and right is None:
                continue
            e = tiles.similarities(z[i][a], z[j][b], ctx.scale).exp_()
            tiles.fill(e, a, b, 0.0)
            # similarity (p, q) is in the sums of both p and q
            both = weights[: e.numel()].view_as(e)
            e.mul_(torch.add(weight[i, a, None], weight[j, None, b], out=both))
            if left is not None:
                _add_product(left[a], e, z[j][b])
            if right is not None and (i, a) != (j, b):
                _add_product(right[b], e.T, z[i][a])
        of_pairs = ctx.order.sort(grads[0])[:, None]
        for view, other in zip(gradients, reversed(z), strict=True):
            if view is not None:
                view.addcmul_(of_pairs, other, value=ctx.scale)
        return *(None if view is None else ctx.order.restore(view) for view in gradients), None, None


class _LSE(torch.autograd.Function):
    """The same for any anchors and keys: (A, D) and (K, D) to (A,), at any temperature."""

    @staticmethod
    def forward(
        ctx: Any, anchors: Tensor, keys: Tensor, patches: _Patches, of_keys: _Patches, temperature: float
    ) -> Tensor:
        ctx.rows, ctx.columns, ctx.scale = _Order(patches.ids), _Order(of_keys.ids), 1 / temperature
        ctx.bounded = temperature >= _BOUNDED_FROM
        anchors, ctx.patches = ctx.rows.sort(anchors), patches.map(ctx.rows.sort)
        keys, ctx.of_keys = ctx.columns.sort(keys), of_keys.map(ctx.columns.sort)
        tiles = _Tiles(ctx.patches, ctx.of_keys, anchors)
        total = anchors.new_zeros(len(anchors))
        maximum = torch.full_like(total, 0.0 if ctx.bounded else torch.finfo(total.dtype).min)
        for a, b in _tiles_of(len(anchors), len(keys), anchors.device.type):
            s = tiles.similarities(anchors[a], keys[b], ctx.scale)
            tiles.fill(s, a, b, -math.inf)
            if not ctx.bounded:
                larger = torch.maximum(maximum[a], s.amax(1))
                total[a] *= (maximum[a] - larger).exp_()
                maximum[a] = larger
                s.sub_(larger[:, None])
            total[a].addmv_(s.exp_(), tiles.ones[: s.shape[1]])
        lse = total.log().add_(maximum)
        ctx.save_for_backward(anchors, keys, lse)
        restored: Tensor = ctx.rows.restore(lse)
        return restored

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        anchors, keys, lse = ctx.saved_tensors
        need_anchors, need_keys = ctx.needs_input_grad[:2]
        grad_anchors = torch.zeros_like(anchors) if need_anchors else None
        grad_keys = torch.zeros_like(keys) if need_keys else None
        # an anchor without negatives has lse -inf: nothing of it is in the sum
        lse = lse.masked_fill(lse == -math.inf, math.inf)
        weight = ctx.rows.sort(grads[0]).mul(ctx.scale)
        if ctx.bounded:
            weight.mul_(lse.neg().exp_())
        weighted = anchors * weight[:, None]
        tiles = _Tiles(ctx.patches, ctx.of_keys, anchors)
        for a, b in _tiles_of(len(anchors), len(keys), anchors.device.type):
            p = tiles.similarities(anchors[a], keys[b], ctx.scale)
            if not ctx.bounded:
                p.sub_(lse[a, None])
            p.exp_()
            tiles.fill(p, a, b, 0.0)
            if grad_anchors is not None:
                _add_product(grad_anchors[a], p, keys[b])
            if grad_keys is not None:
                _add_product(grad_keys[b], p.T, weighted[a])
        if grad_anchors is not None:
            grad_anchors = ctx.rows.restore(grad_anchors.mul_(weight[:, None]))
        if grad_keys is not None:
            grad_keys = ctx.columns.restore(grad_keys)
        return grad_anchors, grad_keys, None, None, None


def _tiles_of(anchors: int, keys: int, device: str) -> Iterator[tuple[slice, slice]]:
    rows, columns = TILES.get(device, TILES["cuda"])
    return product(spans(0, anchors, rows), spans(0, keys, columns))
