"""Backbones: timm vision transformers with CLS entering after block k, and taps on token maps."""

from equimid.backbones.config import BackboneConfig, build_backbone, timm_arguments
from equimid.backbones.registry import equimid_vit
from equimid.backbones.vit import Backbone, Features, LateCLSViT, create_backbone

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Features",
    "LateCLSViT",
    "build_backbone",
    "create_backbone",
    "equimid_vit",
    "timm_arguments",
]
