"""The packed pass: batches of different sizes through one transformer, sharing every matrix product.

Letters: B_v images of size v, T_v tokens each, D width; packed tokens are (sum of B_v T_v, D). Only attention and
the position embedding see sizes. Batches of one size are one segment.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from equimid.features import Features

__all__ = ["packed_forward"]

Watch = Callable[[str, Tensor], Tensor]


def packed_forward(
    vit: Any, batches: Sequence[Tensor], cls_after: int, taps: Sequence[int], watch: Watch | None
) -> list[Features]:
    """One per batch: CLS (B_v, D) after the final norm; maps (B_v, D, h, w) and CLS at the taps, un-normalised."""
    sizes = list(dict.fromkeys(tuple(images.shape[-2:]) for images in batches))
    members = [[i for i, images in enumerate(batches) if tuple(images.shape[-2:]) == size] for size in sizes]
    segments, grids = [], []
    for indices in members:
        tokens, grid = _embed(vit, torch.cat([batches[i] for i in indices]))
        segments.append(tokens)
        grids.append(grid)

    x, shapes = _join(segments), [s.shape[:2] for s in segments]
    maps: list[dict[int, Tensor]] = [{} for _ in sizes]
    cls_at: list[dict[int, Tensor]] = [{} for _ in sizes]
    watched = max(taps, default=0)
    for number, block in enumerate(vit.blocks, start=1):
        if number == cls_after + 1:
            segments = [torch.cat([vit.cls_token.expand(len(s), -1, -1), s], dim=1) for s in _split(x, shapes)]
            x, shapes = _join(segments), [s.shape[:2] for s in segments]
        if vit.grad_checkpointing and vit.training:
            x = checkpoint(_through, block, x, shapes, use_reentrant=False)
        else:
            x = _through(block, x, shapes)
        if number in taps:
            tapped = x
            if watch is not None and number == watched:
                tapped, x = watch("taps", x), watch("stream", x)
            first = 1 if number > cls_after else 0
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


def _join(segments: list[Tensor]) -> Tensor:
    """One segment stays (B, T, D); several become (sum of B_v T_v, D)."""
    return segments[0] if len(segments) == 1 else torch.cat([s.flatten(0, 1) for s in segments])


def _split(x: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    if len(shapes) == 1:
        return [x]
    parts = x.split([b * t for b, t in shapes])
    return [part.view(*shape, x.shape[-1]) for part, shape in zip(parts, shapes, strict=True)]


def _split_each(tapped: dict[int, Tensor], counts: list[int]) -> list[dict[int, Tensor]]:
    parts = {layer: tokens.split(counts) for layer, tokens in tapped.items()}
    return [{layer: part[i] for layer, part in parts.items()} for i in range(len(counts))]


def _through(block: Any, x: Tensor, shapes: list[torch.Size]) -> Tensor:
    """timm's Block and Attention with the tokens of all segments in one matrix."""
    if len(shapes) == 1:
        # not block.forward: that passes CLS by, and here CLS is not yet there
        return cast(Tensor, Block.forward(block, x))
    attention = block.attn
    qkv = _split(attention.qkv(block.norm1(x)), shapes)
    y = attention.proj_drop(attention.proj(attention.norm(_join([_attend(attention, part) for part in qkv]))))
    x = x + _drop_path(block.drop_path1, block.ls1(y), shapes)
    return x + _drop_path(block.drop_path2, block.ls2(block.mlp(block.norm2(x))), shapes)


def _attend(attention: Any, qkv: Tensor) -> Tensor:
    """(B, T, 3 D) to (B, T, D)."""
    b, t, _ = qkv.shape
    if b == 0:
        return qkv[..., : attention.attn_dim]
    q, k, v = qkv.reshape(b, t, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    if attention.fused_attn:
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=attention.attn_drop.p if attention.training else 0.0)
    else:
        y = attention.attn_drop((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
    return y.transpose(1, 2).reshape(b, t, attention.attn_dim)


def _drop_path(drop: nn.Module, x: Tensor, shapes: list[torch.Size]) -> Tensor:
    """Stochastic depth draws per image, so it needs the images apart."""
    return x if isinstance(drop, nn.Identity) else _join([drop(part) for part in _split(x, shapes)])
