"""Backbones: timm vision transformers with CLS entering after block k, and taps on token maps."""

from equimid.backbones.config import BackboneConfig, build_backbone, timm_arguments, without_drop_path
from equimid.backbones.encoder import Encoder, TimmEncoder
from equimid.backbones.hugging_face import HuggingFaceEncoder
from equimid.backbones.packed_forward import run_block
from equimid.backbones.pretrained import Weights, open_pretrained
from equimid.backbones.registry import equimid_vit
from equimid.backbones.vit import Backbone, LateCLSViT, compile_blocks, create_backbone
from equimid.features import Features

__all__ = [
    "Backbone",
    "BackboneConfig",
    "Encoder",
    "Features",
    "HuggingFaceEncoder",
    "LateCLSViT",
    "TimmEncoder",
    "Weights",
    "build_backbone",
    "compile_blocks",
    "create_backbone",
    "equimid_vit",
    "open_pretrained",
    "run_block",
    "timm_arguments",
    "without_drop_path",
]
