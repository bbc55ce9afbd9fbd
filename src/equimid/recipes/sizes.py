"""The same run, smaller: every row of the comparison has one for one machine and one for minutes on two cores."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from equimid.addons import AddonConfig, EmbeddingAddonConfig, ESSLConfig, SERConfig
from equimid.backbones import BackboneConfig
from equimid.config import Config
from equimid.evaluation import EvaluationConfig
from equimid.views import Photometric

__all__ = ["SIZES", "small", "tiny"]

# the objective's heads, by method, and the add-ons', by name
_SMALL_METHODS: dict[str, dict[str, Any]] = {
    "mocov3": {"hidden": 1024, "dim": 128},
    "dino": {"out_dim": 4096, "hidden": 1024, "bottleneck": 128},
    "barlow_twins": {"hidden": 1024, "dim": 1024},
    "simclr": {"hidden": 1024},
    "vicreg": {"hidden": 1024, "dim": 1024},
    "simsiam": {"hidden": 1024, "dim": 512, "bottleneck": 256},
    "byol": {"hidden": 1024, "dim": 128},
}
_SMALL_ADDONS: dict[str, dict[str, Any]] = {
    "ser": {"fraction": 0.125, "hidden": 256},
    "augself": {"hidden": 256},
    "essl": {"size": 32},
    "equimod": {"dim": 64},
}
_TINY_METHODS: dict[str, dict[str, Any]] = {
    "dino": {"out_dim": 1024, "hidden": 512, "momentum": 0.99, "teacher_temperature": 0.04, "teacher_warmup_epochs": 0},
    "barlow_twins": {"hidden": 512, "dim": 512},
    "vicreg": {"hidden": 512, "dim": 512},
}


def imagenet(config: Config) -> Config:
    """ViT-S/16 at 224 px, the paper's scale"""
    return config


def small(config: Config) -> Config:
    """ViT-Ti/16 at 96 px, batch 128: for a folder of images on one machine"""
    return replace(
        config,
        recipe=config.recipe.replace("-imagenet", "-small"),
        backbone=replace(config.backbone, name="vit_tiny_patch16_224", image_size=96, num_heads=None),
        views=replace(config.views, local=replace(config.views.local, size=32)),
        method=replace(config.method, **_SMALL_METHODS.get(config.method.name, {})),
        addons={name: replace(addon, **_SMALL_ADDONS.get(name, {})) for name, addon in config.addons.items()},
        # a batch of 128 is far from where the rate per image must be small
        optim=replace(config.optim, lr=2 * config.optim.lr, final_lr=2 * config.optim.final_lr)
        if config.optim.name == "adamw"
        else config.optim,
        train=replace(config.train, batch_size=128, epochs=100),
        evaluation=EvaluationConfig(network=config.evaluation.network),
        runtime=replace(config.runtime, workers=2),
    )


def tiny(config: Config) -> Config:
    """width 128, depth 6, 32 px images in patches of 8, 24 epochs: minutes on two cores"""
    config = small(config)
    # mild views, the same in every run: digits and CIFAR-10 have nothing to blur
    mild = Photometric(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=0.0)
    views = replace(
        config.views, crop_scale=(0.3, 1.0), flip=0.0, interpolation="bicubic", first=mild, second=mild,
        local=replace(config.views.local, size=16, photometric=mild),
    )  # fmt: skip
    addons = {name: _tiny_addon(addon, config, mild) for name, addon in config.addons.items()}
    made = replace(
        config,
        recipe=config.recipe.replace("-small", "-tiny"),
        backbone=replace(
            config.backbone, image_size=32, patch_size=8, embed_dim=128, depth=6, num_heads=4,
            cls_layer=_tiny_layer(config.backbone.cls_layer),
        ),
        views=views,
        method=replace(config.method, **_TINY_METHODS.get(config.method.name, {})),
        addons=addons,
        optim=replace(config.optim, warmup_epochs=3, lr=_tiny_rate(config)),
        train=replace(config.train, epochs=24),
        evaluation=replace(config.evaluation, crop=1.0),
    )  # fmt: skip
    return _patient(made) if config.method.name == "dino" else made


SIZES: Mapping[str, Callable[[Config], Config]] = {"imagenet": imagenet, "small": small, "tiny": tiny}


def _patient(config: Config) -> Config:
    """DINO, which first falls to equal prototypes for all images and leaves that slowly: a hundred epochs, constant
    weight decay, and MoCo-v3's initial network (docs/methods.md)."""
    start = BackboneConfig()
    return replace(
        config,
        backbone=replace(
            config.backbone, init=start.init, positions=start.positions, freeze_patch_embed=start.freeze_patch_embed,
            drop_path=0.0,
        ),
        optim=replace(config.optim, lr=5e-4, weight_decay_end=None, warmup_epochs=10),
        train=replace(config.train, epochs=100),
    )  # fmt: skip


def _tiny_layer(layer: int) -> int:
    """A layer of ViT-S's 12 in the six of the tiny network: 3 is 2, 9 is 5, 12 is 6."""
    return (layer + 1) // 2


def _tiny_addon(addon: AddonConfig, config: Config, mild: Photometric) -> AddonConfig:
    if isinstance(addon, SERConfig):
        # the weight that this size wants beside MoCo-v3's loss
        weight = 3.0 if addon.weight == 1 and config.method.name == "mocov3" else addon.weight
        layers = tuple(_tiny_layer(layer) for layer in addon.layers)
        return replace(addon, weight=weight, layers=layers, fraction=0.25, area=(0.5, 1.6), hidden=128)
    if isinstance(addon, ESSLConfig):
        addon = replace(addon, size=16, flip=0.0, photometric=mild)
    if isinstance(addon, EmbeddingAddonConfig):
        addon = replace(addon, layer=_tiny_layer(addon.layer))
    return addon


def _tiny_rate(config: Config) -> float:
    if config.optim.name == "lars":
        return config.optim.lr
    # MoCo-v3's family takes twice the rate of those whose gradients are clipped
    return 1e-3 if config.optim.clip else 2e-3
