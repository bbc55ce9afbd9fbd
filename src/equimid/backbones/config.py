"""Settings of the backbone."""

import re
from typing import Annotated, Literal

from equimid.errors import UserError
from equimid.settings import setting, settings

__all__ = ["BackboneConfig"]


@settings("backbone")
class BackboneConfig:
    """A timm vision transformer; null leaves a number to timm's architecture."""

    name: Annotated[str, setting("timm's name of a plain vision transformer, vit_*_patch*")] = "vit_small_patch16_224"
    image_size: Annotated[
        int, setting("side of the training crops, a multiple of the patch size", unit="pixels", ge=1)
    ] = 224
    patch_size: Annotated[int | None, setting("side of a patch", unit="pixels", ge=1)] = None
    embed_dim: Annotated[int | None, setting("columns of a token", ge=1)] = None
    depth: Annotated[int | None, setting("blocks", unit="blocks", ge=1)] = None
    num_heads: Annotated[
        int | None, setting("attention heads (MoCo-v3 has 12 in its ViT-S, timm 6)", unit="heads", ge=1)
    ] = None
    cls_layer: Annotated[
        int, setting("CLS enters after this block; 0 = the ordinary vision transformer", unit="blocks", ge=0)
    ] = 3
    positions: Annotated[
        Literal["learned", "sincos"], setting("sincos: fixed two-dimensional sines and cosines, as in MoCo-v3")
    ] = "sincos"
    init: Annotated[
        Literal["timm", "dino", "mocov3"],
        setting("initialisation: timm's (CLS near 0), DINO's (timm's, but CLS as the positions), or MoCo-v3's (Xavier; "
                "queries, keys and values apart)"),
    ] = "mocov3"  # fmt: skip
    freeze_patch_embed: Annotated[bool, setting("keep the random patch embedding, as MoCo-v3 does for stability")] = (
        True
    )
    drop_path: Annotated[float, setting("stochastic depth of the last block, linear from 0", ge=0, lt=1)] = 0.0
    init_from: Annotated[
        str | None,
        setting("weights to start from: timm:NAME, a .safetensors file, or the folder of a run or a backbone; null = "
                "random weights"),
    ] = None  # fmt: skip

    @property
    def resolved_patch_size(self) -> int:
        """Side of a patch in pixels, from the setting or from timm's name.

        Raises:
            UserError: neither says it.
        """
        named = re.search(r"patch(\d+)", self.name)
        if self.patch_size is None and named is None:
            raise UserError(f"backbone.name is {self.name!r}; expected a plain vision transformer, vit_*_patch*")
        return self.patch_size or int(named[1] if named else 0)
