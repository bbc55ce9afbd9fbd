"""What an evaluation asks of a network, ours or anyone's: the final embedding, token maps and CLS after any block.

Letters: B images, D width, h w patches, L layers counted from 1 (layer l = the output of block l).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from equimid.errors import UserError
from equimid.features import Features

__all__ = ["Encoder", "TimmEncoder"]


class Encoder(nn.Module, ABC):
    """A frozen vision transformer as evaluations see it; always in eval mode.

    depth:          number of blocks, L
    width:          columns of a token, D
    patch:          side of a patch, pixels
    pretrained_cfg: how its images must look, timm's keys: input_size, mean, std, crop_pct
    identity:       16 hex digits of architecture and weights; what is computed from it is cached by that
    random:         seed -> the same network with random weights; None where there is no such thing
    """

    depth: int
    width: int
    patch: int
    pretrained_cfg: Mapping[str, Any]
    random: Callable[[int], "Encoder"] | None = None

    @abstractmethod
    def look(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        """One pass over images (B, 3, H, W), H and W multiples of the patch.

        Returns:
            cls: the final embedding (B, D); maps {layer: (B, D, h, w)} and cls_at {layer: (B, D)} un-normalised. Of a
            network without CLS, and of layers below the one where CLS enters, cls_at has none.
        """

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm before the network's output, on tokens (..., D)."""
        return tokens

    def cls_attention(self, images: Tensor) -> Tensor | None:
        """Attention of CLS to every patch in the last block, (B, heads, h, w); None where it cannot be had."""
        return None

    def token_maps(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Un-normalised token maps {layer: (B, D, h, w)}."""
        return self.look(images, layers).maps

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
        """What the weights alone do not tell."""
        return f"{type(self).__name__} {self}"


class TimmEncoder(Encoder):
    """A timm vision transformer whose blocks all keep one grid of patches, with or without CLS; ours are such.

    Raises:
        UserError: it is another kind of network.
    """

    def __init__(self, model: nn.Module, name: str, random: Callable[[int], Encoder] | None = None) -> None:
        super().__init__()
        blocks, embed = getattr(model, "blocks", None), getattr(model, "patch_embed", None)
        patch = getattr(embed, "patch_size", None)
        if blocks is None or patch is None or not hasattr(model, "num_prefix_tokens") or patch[0] != patch[1]:
            raise UserError(
                f"{name} is a {type(model).__name__}; expected a plain vision transformer with one grid of square "
                "patches from first to last block, such as vit_small_patch16_224, deit3_small_patch16_224 or "
                "eva02_tiny_patch14_224"
            )
        self.model: Any = model
        self.name, self.random = name, random
        self.depth, self.width, self.patch = len(blocks), int(self.model.embed_dim), int(patch[0])
        self.prefix = int(self.model.num_prefix_tokens)
        self.cls_after = int(getattr(model, "cls_after", 0))
        self.pretrained_cfg = dict(self.model.pretrained_cfg)
        # distilled networks average two tokens, others pool patches: only what reads CLS alone has it as its output
        self.has_cls = self.prefix > 0 and getattr(model, "cls_token", None) is not None
        self.eval().requires_grad_(False)

    def look(self, images: Tensor, layers: Sequence[int] = ()) -> Features:
        ascending = sorted(set(layers))
        final, found = self.model.forward_intermediates(
            images, indices=[layer - 1 for layer in ascending], return_prefix_tokens=self.prefix > 0
        )
        cls = self.model.forward_head(final, pre_logits=True)
        if not self.prefix:
            return Features(cls, dict(zip(ascending, found, strict=True)))
        maps = {layer: pair[0] for layer, pair in zip(ascending, found, strict=True)}
        entered = [layer for layer in ascending if layer > self.cls_after and self.has_cls]
        return Features(cls, maps, {layer: found[ascending.index(layer)][1][:, 0] for layer in entered})

    def final_norm(self, tokens: Tensor) -> Tensor:
        normed: Tensor = self.model.norm(tokens)
        return normed

    def cls_attention(self, images: Tensor) -> Tensor | None:
        attention = getattr(self.model.blocks[-1], "attn", None)
        if not self.has_cls or type(attention) is not Attention:
            return None
        seen: list[Tensor] = []
        hook = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            self.model.forward_features(images)
        finally:
            hook.remove()
        b, t, _ = seen[0].shape
        qkv = attention.qkv(seen[0]).reshape(b, t, 3, attention.num_heads, attention.head_dim)
        q, k, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)
        weights = (q[:, :, :1] * attention.scale @ k.transpose(-2, -1)).softmax(-1)[:, :, 0, self.prefix :]
        grid = (images.shape[-2] // self.patch, images.shape[-1] // self.patch)
        return weights.unflatten(-1, grid)

    def _architecture(self) -> str:
        return f"{self.cls_after} {self.model}"
