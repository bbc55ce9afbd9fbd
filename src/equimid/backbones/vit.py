"""timm's vision transformer with CLS entering after block k, and token maps tapped on the way.

Letters: B images, P patches, T tokens, D width, L layers counted from 1 (layer l = the output of block l).

CLS, with the registers of a network that has them, is carried past the first k blocks, which see patch tokens only:
this equals inserting it after block k, and keeps every feature of timm (intermediates, other image sizes, fused
attention, compile) and its weight names.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from equimid.backbones.packed_forward import EAGER, Regions, compiled_regions, packed_forward
from equimid.errors import UserError
from equimid.features import Features

__all__ = ["Backbone", "LateCLSViT", "compile_blocks", "create_backbone"]


V = TypeVar("V", bound="LateCLSViT")


class LateBlock(Block):
    """timm's block; where it stands before block k, CLS and the registers pass it by."""

    prefix: int = 1  # tokens before those of patches

    def __init__(self, *args: Any, cls_layer: int, depth: int, **kwargs: Any) -> None:
        super().__init__(*args, depth=depth, **kwargs)
        self.passes_cls = depth < cls_layer

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if not self.passes_cls:
            everything: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
            return everything
        patches: Tensor = super().forward(x[:, self.prefix :], attn_mask=attn_mask, is_causal=is_causal)
        return torch.cat([x[:, : self.prefix], patches], dim=1)


class LateCLSViT(VisionTransformer):
    """A timm VisionTransformer in all respects; its output is the CLS embedding (B, D).

    Beside timm's weights it holds `tap_norms` and, where k > 0, a marker named cls_layer. Plain timm does not know the
    marker, so a strict load of these weights into a model that cannot compute them fails.
    """

    cls_after: int  # as the setting cls_layer; the marker among the weights has that name
    taps: tuple[int, ...]
    checkpoint: str = ""
    tap_norms: nn.ModuleDict

    def _tap(self, cls_layer: int, taps: Sequence[int]) -> None:
        self.cls_after, self.taps = cls_layer, tuple(taps)
        self.tap_norms = nn.ModuleDict({str(layer): nn.LayerNorm(self.embed_dim, eps=1e-6) for layer in taps})
        if cls_layer > 0:
            self.register_buffer("cls_layer", torch.tensor(cls_layer))
            self.register_load_state_dict_pre_hook(_refuse_another_cls_layer)

    def prefix_tokens(self) -> Tensor:
        """(1, P, D): CLS, then the registers where there are any."""
        tokens: Tensor = (
            self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token], dim=1)
        )
        return tokens

    def token_maps(self, images: Tensor, layers: Sequence[int]) -> dict[int, Tensor]:
        """Un-normalised token maps {layer: (B, D, h, w)} after any blocks, for measurement."""
        ascending = sorted(set(layers))  # timm's order, whatever is asked
        maps = self.forward_intermediates(images, indices=[layer - 1 for layer in ascending], intermediates_only=True)
        return dict(zip(ascending, maps, strict=True))


class Backbone(LateCLSViT):
    """The same network as methods use it: `forward(images)` gives Features.

    Attributes:
        whole_last_block: compute the last block for all tokens in training too, though only CLS is read after it (for
                          counting the FLOPs of the network as they are published)
    """

    whole_last_block: bool = False
    regions: Regions = EAGER

    def forward(self, images: Tensor) -> Features:
        """Features of images (B, 3, H, W); H and W are multiples of the patch."""
        return self.forward_packed([images])[0]

    def forward_packed(
        self,
        batches: Sequence[Tensor],
        mapped: Sequence[int] | None = None,
        watch: Callable[[str, Tensor], Tensor] | None = None,
    ) -> list[Features]:
        """One pass over batches of different sizes, (B_v, 3, H_v, W_v) each: one Features per batch.

        All batches share every matrix product; only attention is per size. Equal to separate passes. B_v may be 0.

        Args:
            mapped: which of the batches want maps; None = all of them.
            watch: called with ("stream", tokens) and ("taps", tokens) at the last tap, so that a caller can watch
                the gradient that arrives from later blocks and from the tap; returns the tokens to go on with.

        Raises:
            UserError: an image side is not a multiple of the patch.
        """
        patch = self.patch_embed.patch_size
        for images in batches:
            height, width = images.shape[-2:]
            if height % patch[0] or width % patch[1] or min(height, width) == 0:
                raise UserError(f"images of {height} x {width} px do not divide into patches of {patch[0]} px")
        features = packed_forward(self, batches, self.cls_after, self.taps, watch)
        wanted = range(len(batches)) if mapped is None else mapped
        return [self._normed(f) if i in wanted else Features(f.cls) for i, f in enumerate(features)]

    def _normed(self, features: Features) -> Features:
        def norm(layer: int, tokens: Tensor) -> Tensor:
            normed: Tensor = self.tap_norms[str(layer)](tokens.movedim(1, -1))
            return normed.movedim(-1, 1)

        return Features(
            features.cls,
            {layer: norm(layer, tokens) for layer, tokens in features.maps.items()},
            {layer: norm(layer, tokens) for layer, tokens in features.cls_at.items()},
        )


def compile_blocks(module: nn.Module) -> None:
    """Run the token-wise parts of every `Backbone` in the module through torch.compile from now on.

    Values are the same by rounding, names of weights the same; the first steps take a minute longer.
    """
    regions = compiled_regions()
    for network in module.modules():
        if isinstance(network, Backbone):
            network.regions = regions


def create_backbone(name: str, cls_layer: int = 3, taps: Sequence[int] = (3,), **kwargs: Any) -> Backbone:
    """A timm vision transformer by name, with late CLS and taps.

    Args:
        name: a plain timm vision transformer, such as "vit_small_patch16_224".
        cls_layer: k, CLS enters after block k; 0 gives timm's model (with `no_embed_class=True`) bit for bit.
        taps: layers whose token maps `Features.maps` holds, each with its own norm.
        kwargs: timm's own, such as img_size, patch_size, embed_dim, depth, num_heads, drop_path_rate.

    Raises:
        UserError: timm does not know the name or an argument, it is not a plain vision transformer, or a layer lies
            outside the network.
    """
    refuse_pretrained(name, bool(kwargs.get("pretrained")))
    return build(Backbone, name, cls_layer, taps, **kwargs)


def refuse_pretrained(name: str, asked: bool = False) -> None:
    """
    Raises:
        UserError: a tag of pretrained weights is in the name, or they are asked for: they would not be loaded.
    """
    architecture, dot, tag = name.partition(".")
    if dot or asked:
        named = f"{name!r} names pretrained weights ({tag})" if dot else "pretrained=True asks for pretrained weights"
        raise UserError(
            f"{named}, and they are not loaded here: the network would start from random weights. Write "
            f"{architecture!r} to train it from random weights, or with backbone.init_from=timm:{name} from these"
        )


def build(kind: type[V], name: str, cls_layer: int, taps: Sequence[int], **kwargs: Any) -> V:
    """The network as `kind`; see `create_backbone`."""
    name = name.partition(".")[0]  # weights are loaded afterwards, if at all
    if not timm.is_model(name):
        near = timm.list_models("*" + "*".join(name.split("_")[:2]) + "*")[:3] or timm.list_models("vit_small*")[:3]
        raise UserError(f"timm has no model {name!r}; plain vision transformers are named like {', '.join(near)}")
    arguments = {"no_embed_class": True, "dynamic_img_size": True, "num_classes": 0, **kwargs}
    try:
        with torch.device("meta"):
            blocks = getattr(timm.create_model(name, **arguments), "blocks", [None])
        if type(blocks[0]) is not Block:
            raise UserError(f"{name!r} is not built of timm's plain blocks; use vit_*_patch*")
        vit = timm.create_model(name, block_fn=partial(LateBlock, cls_layer=cls_layer), **arguments)
    except UserError:
        raise
    except (TypeError, AssertionError, ValueError) as error:
        raise UserError(f"timm cannot build {name!r} with {kwargs or 'these settings'}: {error}") from error
    plain = type(vit) is VisionTransformer and vit.has_class_token and vit.global_pool == "token"
    if not plain or not vit.no_embed_class or not isinstance(vit.norm_pre, nn.Identity):
        raise UserError(f"{name!r} is not a plain vision transformer with one CLS token; use vit_*_patch*")
    depth = len(vit.blocks)
    if not isinstance(cls_layer, int) or not 0 <= cls_layer < depth:
        raise UserError(f"cls_layer is {cls_layer}; {name} has {depth} blocks, so it must lie in 0..{depth - 1}")
    for layer in taps:
        if not 1 <= layer <= depth:
            raise UserError(f"layer {layer} is outside the network: {name} has layers 1 to {depth}")
    # timm keeps an architecture's numbers inside its entry function, so timm builds and we give it our class
    vit.__class__ = kind
    for block in vit.blocks:
        block.prefix = vit.num_prefix_tokens
    vit._tap(cls_layer, taps)
    result: V = vit
    return result


def _refuse_another_cls_layer(module: LateCLSViT, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    entered = state.get(prefix + "cls_layer")
    if entered is not None and int(entered) != module.cls_after:
        raise UserError(
            f"these weights were trained with CLS entering after block {int(entered)}, this network enters it after "
            f"block {module.cls_after}: build it with cls_layer={int(entered)}"
        )
