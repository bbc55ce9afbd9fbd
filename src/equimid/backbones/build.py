"""A backbone from its settings, and MoCo-v3's initialisation of it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from equimid.backbones.config import BackboneConfig
from equimid.backbones.vit import Backbone, build
from equimid.errors import UserError
from equimid.randomness import counted_torch_seed

__all__ = ["build_backbone", "sincos_positions", "timm_arguments", "without_drop_path"]


def timm_arguments(config: BackboneConfig) -> dict[str, Any]:
    """The keyword arguments that timm gets beside the name."""
    arguments = {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
    }
    return {"img_size": config.image_size} | {key: value for key, value in arguments.items() if value is not None}


def build_backbone(config: BackboneConfig, taps: Sequence[int], seed: int, purpose: str = "backbone") -> Backbone:
    """The network with weights drawn from (seed, purpose).

    Raises:
        UserError: see `create_backbone`; or the image size is not a multiple of the patch.
    """
    with counted_torch_seed(seed, purpose):
        vit = build(
            Backbone, config.name, config.cls_layer, taps, drop_path_rate=config.drop_path, **timm_arguments(config)
        )
        patch = vit.patch_embed.patch_size[0]
        if config.image_size % patch:
            near = max(patch, round(config.image_size / patch) * patch)
            raise UserError(
                f"backbone.image_size is {config.image_size}, not a multiple of the {patch} px patch; try {near}"
            )
        if config.init == "mocov3":
            _initialise_as_mocov3(vit)
        elif config.init == "dino":
            nn.init.trunc_normal_(vit.cls_token, std=0.02)
    if config.positions == "sincos":
        vit.pos_embed.data.copy_(sincos_positions(vit.patch_embed.grid_size, vit.embed_dim))
        vit.pos_embed.requires_grad_(False)
    if config.freeze_patch_embed:
        vit.patch_embed.requires_grad_(False)
    return vit


def without_drop_path(network: nn.Module) -> nn.Module:
    """The same network, changed in place to draw no stochastic depth: a momentum network has none."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return network


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Fixed positions (1, h * w, D): sin, cos of row * omega, then of column * omega, omega_j = 10000^(-4 j / D).

    Source: moco-v3 `vits.py`, `build_2d_sincos_position_embedding` (which names the row "w").

    Raises:
        UserError: the width is not a multiple of 4.
    """
    if width % 4:
        raise UserError(f"sin-cos positions need a width that 4 divides, found {width}")
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [index.flatten()[:, None] * omega for index in (rows, columns)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[None].float()


def _initialise_as_mocov3(vit: Backbone) -> None:
    """moco-v3 `vits.py`: Xavier-uniform linears with q, k, v apart and zero biases; CLS N(0, 1e-6^2)."""
    for name, module in vit.named_modules():
        if isinstance(module, nn.Linear):
            if name.endswith("qkv"):
                bound = math.sqrt(6 / (module.weight.shape[0] // 3 + module.weight.shape[1]))
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(vit.cls_token, std=1e-6)
    projection = vit.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + vit.embed_dim))
    nn.init.uniform_(projection.weight, -bound, bound)
    nn.init.zeros_(projection.bias)
