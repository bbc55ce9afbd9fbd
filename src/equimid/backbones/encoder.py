"""What an evaluation asks of a network, ours or anyone's: the final embedding, token maps and CLS after any block.

Letters: B images, D width, h w patches, L layers counted from 1 (layer l = the output of block l).
"""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.features import Features

__all__ = ["Encoder", "TimmEncoder", "kept_inputs", "require_one_grid"]

# of a module, but not of what it computes
_NO_MATTER = {"training", "name", "taps", "checkpoint", "fused_attn", "dump_patches", "call_super_init"}


class Encoder(nn.Module, ABC):
    """A frozen vision transformer as evaluations see it; always in eval mode.

    Attributes:
        depth:          number of blocks, L
        embed_dim:      columns of a token, D
        patch_size:     side of a patch, pixels
        pretrained_cfg: how its images must look, timm's keys: input_size, mean, std, crop_pct
        any_size:       whether it takes images of any sides that patches divide, or those of `pretrained_cfg` alone
        taps:           layers that its training read, if it is ours: pictures show them
        reads_cls:      whether the final embedding is CLS through `final_norm`; else it is pooled from tokens
        identity:       16 hex digits of architecture and weights; what is computed from it is cached by that
        random:         seed -> the same network with random weights; None where there is no such thing
    """

    depth: int
    embed_dim: int
    patch_size: int
    pretrained_cfg: Mapping[str, Any]
    any_size: bool = True
    reads_cls: bool = True
    taps: Sequence[int] = ()
    random: Callable[[int], "Encoder"] | None = None

    @abstractmethod
    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """One pass over images (B, 3, H, W), H and W multiples of the patch.

        Returns:
            cls: the final embedding (B, D); maps {layer: (B, D, h, w)} and cls_at {layer: (B, D)} un-normalised. Of a
            network without CLS, and of layers below the one where CLS enters, cls_at has none.

        Raises:
            UserError: an image side is not a multiple of the patch, or not the only one that the network takes.
        """

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm before the network's output, on tokens (..., D)."""
        return tokens

    def cls_attention(self, images: Tensor) -> Tensor | None:
        """Attention of CLS to every patch in the last block, (B, heads, h, w); None where it cannot be had."""
        return None

    def token_maps(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Un-normalised token maps {layer: (B, D, h, w)}."""
        return self.forward_features(images, layers).maps

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) in patches of images (B, 3, H, W).

        Raises:
            UserError: as `look`.
        """
        height, width = images.shape[-2:]
        side = int(self.pretrained_cfg["input_size"][-1])
        if not self.any_size and (height, width) != (side, side):
            raise UserError(f"this network takes images of {side} x {side} px alone, found {height} x {width}")
        if height % self.patch_size or width % self.patch_size or min(height, width) == 0:
            raise UserError(f"images of {height} x {width} px do not divide into patches of {self.patch_size} px")
        return height // self.patch_size, width // self.patch_size

    def train(self, mode: bool = True) -> "Encoder":
        # an evaluation never changes the network: drop path and the like stay off
        super().train(False)
        return self

    @property
    def identity(self) -> str:
        state = hashlib.blake2b(self._architecture().encode(), digest_size=8)
        for name, value in sorted(self.state_dict().items()):
            state.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            state.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()

    def _architecture(self) -> str:
        """What the weights alone do not tell: classes, and plain settings such as the number of heads."""
        return "\n".join(
            f"{name} {type(module).__name__} {module.extra_repr()} "
            + repr(sorted((k, v) for k, v in vars(module).items() if k[0] != "_" and k not in _NO_MATTER and _plain(v)))
            for name, module in self.named_modules()
        )


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def require_one_grid(encoder: Encoder, name: str) -> None:
    """Look at two images, on the meta device that the encoder must lie on: every block keeps one token for each patch.

    Raises:
        UserError: it does not.
    """
    side, layers = int(encoder.pretrained_cfg["input_size"][-1]), range(1, encoder.depth + 1)
    sizes = [(side, side), (side + encoder.patch_size, side)] if encoder.any_size else [(side, side)]
    for height, width in sizes:
        expected = (2, encoder.embed_dim, height // encoder.patch_size, width // encoder.patch_size)
        try:
            with torch.device("meta"):
                maps = encoder.forward_features(torch.zeros(2, 3, height, width), layers).maps
            shapes = {tuple(maps[layer].shape) for layer in layers}
        except Exception:  # another kind of network fails in any way
            shapes = set()
        if shapes != {expected}:
            raise not_a_vit(name, getattr(encoder, "model", encoder))


def not_a_vit(name: str, model: object) -> UserError:
    """The error for another kind of network."""
    return UserError(
        f"{name} is a {type(model).__name__}; expected a plain vision transformer with one grid of square patches "
        "from first to last block, such as timm:vit_small_patch16_224, timm:eva02_tiny_patch14_224 or "
        "hf:facebook/dinov2-small"
    )


@contextmanager
def kept_inputs(module: nn.Module) -> Iterator[list[Any]]:
    """What the module is called with, first arguments, while the block lasts."""
    inputs: list[Any] = []
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


class TimmEncoder(Encoder):
    """A timm vision transformer whose blocks all keep one grid of patches, with or without CLS; ours are such.

    Raises:
        UserError: it is another kind of network.
    """

    def __init__(self, model: Any, name: str, random: Callable[[int], Encoder] | None = None) -> None:
        super().__init__()
        blocks, embed = getattr(model, "blocks", None), getattr(model, "patch_embed", None)
        ratio = getattr(embed, "feat_ratio", None)
        patch = ratio(as_scalar=False) if callable(ratio) else (0, 1)
        look = getattr(model, "forward_intermediates", None)
        if (
            blocks is None
            or patch[0] != patch[1]
            or not hasattr(model, "num_prefix_tokens")
            or "return_prefix_tokens" not in (inspect.signature(look).parameters if callable(look) else ())
        ):
            raise not_a_vit(name, model)
        self.model = model
        self.name, self.random = name, random
        self.depth, self.embed_dim, self.patch_size = len(blocks), int(self.model.embed_dim), int(patch[0])
        self.prefix = int(self.model.num_prefix_tokens)
        self.cls_layer = int(getattr(model, "cls_after", 0))
        self.taps = tuple(getattr(model, "taps", ()))
        self.any_size = not getattr(embed, "strict_img_size", False)
        self.has_cls = self.prefix > 0 and getattr(model, "cls_token", None) is not None
        # distilled networks average two tokens, others pool patches
        distilled = getattr(model, "dist_token", None) is not None
        self.reads_cls = self.has_cls and getattr(model, "global_pool", "token") == "token" and not distilled
        self.pretrained_cfg = dict(self.model.pretrained_cfg)
        side = int(self.pretrained_cfg["input_size"][-1])
        if self.any_size and side % self.patch_size:
            # such networks leave the last pixels out
            side = side // self.patch_size * self.patch_size
            self.pretrained_cfg["input_size"] = (3, side, side)
        self.eval().requires_grad_(False)

    def forward_features(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        self.grid(images)
        ascending = sorted(set(layers))
        if not ascending:
            return Features(self.model.forward_head(self.model.forward_features(images), pre_logits=True))
        final, layers_out = self.model.forward_intermediates(
            images, indices=[layer - 1 for layer in ascending], return_prefix_tokens=self.prefix > 0
        )
        cls = self.model.forward_head(final, pre_logits=True)
        if not self.prefix:
            return Features(cls, dict(zip(ascending, layers_out, strict=True)))
        maps = {layer: pair[0] for layer, pair in zip(ascending, layers_out, strict=True)}
        entered = [layer for layer in ascending if layer > self.cls_layer and self.has_cls]
        return Features(cls, maps, {layer: layers_out[ascending.index(layer)][1][:, 0] for layer in entered})

    def final_norm(self, tokens: Tensor) -> Tensor:
        norm, after_pooling = self.model.norm, getattr(self.model, "fc_norm", None)
        if isinstance(norm, nn.Identity) and after_pooling is not None:
            norm = after_pooling
        normed: Tensor = norm(tokens)
        return normed

    def cls_attention(self, images: Tensor) -> Tensor | None:
        attention: Any = getattr(self.model.blocks[-1], "attn", None)
        drop = getattr(attention, "attn_drop", None)
        if not self.has_cls or not isinstance(drop, nn.Module) or not hasattr(attention, "fused_attn"):
            return None
        grid = self.grid(images)
        fused, attention.fused_attn = attention.fused_attn, False  # the fused kernel shows no weights
        try:
            with kept_inputs(drop) as inputs:
                self.model.forward_features(images)
        finally:
            attention.fused_attn = fused
        weights: Tensor = inputs[0][:, :, 0, self.prefix :]
        return weights.reshape(*weights.shape[:2], *grid)
