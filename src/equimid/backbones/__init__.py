"""Backbones: timm vision transformers with CLS entering after block k, and taps on token maps."""

from equimid.backbones.config import BackboneConfig, build_backbone, timm_arguments, without_drop_path
from equimid.backbones.registry import equimid_vit
from equimid.backbones.vit import Backbone, LateCLSViT, create_backbone
from equimid.features import Features

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Features",
    "LateCLSViT",
    "build_backbone",
    "create_backbone",
    "equimid_vit",
    "timm_arguments",
    "without_drop_path",
]
