"""The packed pass: batches of different sizes through one transformer, sharing every matrix product.

Letters: B_v images of size v, T_v tokens each, N = sum of B_v T_v, D width; packed tokens are (N, D). Only attention
and the position embedding see sizes. Batches of one size are one segment.

In training, what nothing reads is not computed: after the last block only CLS is read (unless its map is tapped), so
that block's queries, projection and MLP are those of CLS alone. Values and gradients are the same, by rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from equimid.features import Features

__all__ = ["EAGER", "Regions", "compiled_regions", "packed_forward", "run_block"]

Watch = Callable[[str, Tensor], Tensor]


class Regions(NamedTuple):
    """The token-wise parts of a block, before and after attention; see `compiled_regions`."""

    before: Callable[[Any, Tensor], Tensor]
    after: Callable[[Any, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def packed_forward(
    vit: Any, batches: Sequence[Tensor], cls_layer: int, taps: Sequence[int], watch: Watch | None
) -> list[Features]:
    """One per batch: CLS (B_v, D) after the final norm; maps (B_v, D, h, w) and CLS at the taps, un-normalised."""
    sizes = list(dict.fromkeys(tuple(images.shape[-2:]) for images in batches))
    members = [[i for i, images in enumerate(batches) if tuple(images.shape[-2:]) == size] for size in sizes]
    segments, grids = [], []
    for indices in members:
        tokens, grid = _embed(vit, torch.cat([batches[i] for i in indices]))
        segments.append(tokens)
        grids.append(grid)

    x, shapes = _join(segments), [(s.shape[0], s.shape[1]) for s in segments]
    maps: list[dict[int, Tensor]] = [{} for _ in sizes]
    cls_at: list[dict[int, Tensor]] = [{} for _ in sizes]
    watched, prefix = max(taps, default=0), vit.prefix_tokens()
    depth = len(vit.blocks)
    for number, block in enumerate(vit.blocks, start=1):
        if number == cls_layer + 1:
            segments = [torch.cat([prefix.expand(len(s), -1, -1), s], dim=1) for s in _split(x, shapes)]
            x, shapes = _join(segments), [(s.shape[0], s.shape[1]) for s in segments]
        cls_only = number == depth and depth not in taps and vit.training and not vit.whole_last_block
        if vit.grad_checkpointing and vit.training:
            x = checkpoint(_through, block, x, shapes, vit.regions, cls_only, use_reentrant=False)
        else:
            x = _through(block, x, shapes, vit.regions, cls_only)
        if cls_only:
            shapes = [(b, 1) for b, _ in shapes]
        if number in taps:
            tapped = x
            if watch is not None and number == watched:
                tapped, x = watch("taps", x), watch("stream", x)
            first = prefix.shape[1] if number > cls_layer else 0
            for segment, (tokens, grid) in enumerate(zip(_split(tapped, shapes), grids, strict=True)):
                maps[segment][number] = tokens[:, first:].unflatten(1, grid).movedim(-1, 1)
                if first:
                    cls_at[segment][number] = tokens[:, 0]

    cls = [vit.norm(s[:, 0]) for s in _split(x, shapes)]
    # back from segments to the batches as they were given
    features: dict[int, Features] = {}
    for segment, indices in enumerate(members):
        counts = [len(batches[i]) for i in indices]
        parts = [cls[segment].split(counts), _split_each(maps[segment], counts), _split_each(cls_at[segment], counts)]
        features |= {i: Features(*part) for i, part in zip(indices, zip(*parts, strict=True), strict=True)}
    return [features[i] for i in range(len(batches))]


def _embed(vit: Any, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Patch tokens with positions (B, P, D) and their grid."""
    x = vit.patch_embed(images)
    grid = (x.shape[1], x.shape[2])
    positions = resample_abs_pos_embed(
        vit.pos_embed, new_size=grid, old_size=vit.patch_embed.grid_size, num_prefix_tokens=0
    )
    return vit.pos_drop(x.flatten(1, 2) + positions), grid


Shapes = list[tuple[int, int]]  # per segment, B_v and T_v


def _join(segments: Sequence[Tensor]) -> Tensor:
    """(B_v, T_v, D) each, to (N, D)."""
    return segments[0].flatten(0, 1) if len(segments) == 1 else torch.cat([s.flatten(0, 1) for s in segments])


def _split(x: Tensor, shapes: Shapes) -> list[Tensor]:
    parts = x.split([b * t for b, t in shapes])
    return [part.view(*shape, x.shape[-1]) for part, shape in zip(parts, shapes, strict=True)]


def _split_each(tapped: dict[int, Tensor], counts: list[int]) -> list[dict[int, Tensor]]:
    parts = {layer: tokens.split(counts) for layer, tokens in tapped.items()}
    return [{layer: part[i] for layer, part in parts.items()} for i in range(len(counts))]


def run_block(block: Any, tokens: Tensor) -> Tensor:
    """(B, T, D) through one block as the packed pass runs it."""
    (b, t, _), parts = tokens.shape, tokens.flatten(0, 1)
    return _through(block, parts, [(b, t)], EAGER, False).view(tokens.shape)


def _through(block: Any, x: Tensor, shapes: Shapes, regions: Regions, cls_only: bool) -> Tensor:
    """timm's Block with the tokens of all segments in one matrix: (N, D) to (N, D), or to CLS alone (sum of B_v, D)."""
    attention = block.attn
    parts = _Heads.apply(regions.before(block, x), shapes, attention.num_heads)
    triples = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    if cls_only:
        x = _join([tokens[:, :1] for tokens in _split(x, shapes)])
        triples = [(q[:, :, :1], k, v) for q, k, v in triples]
        shapes = [(b, 1) for b, _ in shapes]
    y = _Merged.apply(*(_attend(attention, *qkv) for qkv in triples))
    return regions.after(block, x, y, _kept(block.drop_path1, x, shapes), _kept(block.drop_path2, x, shapes))


class _Heads(torch.autograd.Function):
    """(N, 3 D) to q, k, v of every segment, views of (B_v, heads, T_v, d) each.

    torch's own backward of split and of unbind copies the gradients of all tokens once for each; here every gradient
    is written where it belongs, once.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, shapes: Shapes, heads: int) -> tuple[Tensor, ...]:
        ctx.shapes, ctx.heads, ctx.like = shapes, heads, (qkv.shape, qkv.dtype, qkv.device)
        return _head_views(qkv, shapes, heads, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        shape, dtype, device = ctx.like
        gradient = torch.empty(shape, dtype=dtype, device=device)
        for place, grad in zip(_head_views(gradient, ctx.shapes, ctx.heads, 3), grads, strict=True):
            place.copy_(grad)
        return gradient, None, None


class _Merged(torch.autograd.Function):
    """The way back: attention's output of every segment, (B_v, heads, T_v, d) each, to (N, D).

    One copy, where torch turns the heads in one, if attention was written out, and joins the segments in another.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        ctx.shapes, ctx.heads = [(len(part), part.shape[2]) for part in parts], parts[0].shape[1]
        if len(parts) == 1:
            return parts[0].transpose(1, 2).flatten(2).flatten(0, 1)  # the fused kernel's output lies so already
        merged = parts[0].new_empty(sum(b * t for b, t in ctx.shapes), ctx.heads * parts[0].shape[3])
        for place, part in zip(_head_views(merged, ctx.shapes, ctx.heads, 1), parts, strict=True):
            place.copy_(part)
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return _head_views(gradient.contiguous(), ctx.shapes, ctx.heads, 1)


def _head_views(x: Tensor, shapes: Shapes, heads: int, kinds: int) -> tuple[Tensor, ...]:
    """(N, kinds D) to views of every segment: of every kind one, (B_v, heads, T_v, d)."""
    width = x.shape[1] // (kinds * heads)
    parts = zip(x.split([b * t for b, t in shapes]), shapes, strict=True)
    return tuple(
        view for part, (b, t) in parts for view in part.view(b, t, kinds, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    )


# Up to so many tokens, attention in bf16 with a gradient is written out on a CPU: the backward pass of torch's fused
# kernel makes the two passes 2.3 times slower at 197 tokens, 1.4 at 1,025, where memory begins to count.
_WRITTEN_OUT = 256


def _attend(attention: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, T, d) each; there may be fewer queries than keys."""
    if len(q) == 0:
        return q
    q, k = attention.q_norm(q), attention.k_norm(k)
    slow = v.device.type == "cpu" and v.dtype == torch.bfloat16 and v.requires_grad and v.shape[2] <= _WRITTEN_OUT
    if attention.fused_attn and not slow:
        dropped = attention.attn_drop.p if attention.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropped)
    return cast(Tensor, attention.attn_drop((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v)


def _kept(drop: nn.Module, x: Tensor, shapes: Shapes) -> Tensor | None:
    """Stochastic depth as a factor (N, 1) of every token, drawn once per image; None where nothing is dropped."""
    if isinstance(drop, nn.Identity) or not drop.training or not drop.drop_prob:
        return None
    return _join([drop(x.new_ones(b, 1, 1)).expand(b, t, 1) for b, t in shapes])


# ---- the token-wise parts of a block ---------------------------------------------------------------------------


def _before(block: Any, x: Tensor) -> Tensor:
    """(N, D) to (N, 3 D)."""
    return cast(Tensor, block.attn.qkv(block.norm1(x)))


def _after(block: Any, x: Tensor, y: Tensor, kept1: Tensor | None, kept2: Tensor | None) -> Tensor:
    """The stream x and what attention gave, (N, D) each, to the block's output."""
    attention = block.attn
    y = block.ls1(attention.proj_drop(attention.proj(attention.norm(y))))
    x = x + (y if kept1 is None else y * kept1)
    y = block.ls2(block.mlp(block.norm2(x)))
    return x + (y if kept2 is None else y * kept2)


EAGER = Regions(_before, _after)


def compiled_regions() -> Regions:
    """The same, compiled when first called, with the number of tokens unknown: one graph (and one without gradient)
    serves all grids and all blocks. Attention stays torch's own."""
    return Regions(torch.compile(_before, dynamic=True), torch.compile(_after, dynamic=True))
