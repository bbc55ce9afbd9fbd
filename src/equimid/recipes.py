"""Recipes: one function per run; a recipe is another recipe, edited.

Three sizes (imagenet: the paper's; small: one machine; tiny: 32 px, minutes on a CPU) times three variants (mocov3,
control, ser), of which `ser` is the method and the others are what it must beat.
"""

import difflib
from collections.abc import Callable
from dataclasses import replace

from equimid.addons import SERConfig
from equimid.config import Config
from equimid.errors import UserError
from equimid.views import Photometric

__all__ = ["RECIPES", "recipe"]

Recipe = Callable[[], Config]


def ser_imagenet() -> Config:
    """SER on MoCo-v3, ViT-S/16 at 224 px, batch 2048, 100 epochs: the paper's main row (69.28 %, not run here)"""
    config = Config(recipe="ser-imagenet")
    return replace(
        config,
        optim=replace(config.optim, lr=3e-4, warmup_epochs=10),
        train=replace(config.train, batch_size=2048, epochs=100),
        runtime=replace(config.runtime, workers=8),
    )


def mocov3_imagenet() -> Config:
    """MoCo-v3 alone, the ordinary vision transformer: the paper's base row (68.44 %, not run here)"""
    return _base_only(ser_imagenet(), "mocov3-imagenet")


def control_imagenet() -> Config:
    """Late CLS and posed views, but weight 0: the paper's control (68.82 %, not run here)"""
    return _control(ser_imagenet(), "control-imagenet")


def ser_small() -> Config:
    """SER on MoCo-v3, ViT-Ti/16 at 96 px, batch 128: for a folder of images on one machine"""
    config = ser_imagenet()
    return replace(
        config,
        recipe="ser-small",
        backbone=replace(config.backbone, name="vit_tiny_patch16_224", image_size=96),
        method=replace(config.method, hidden=1024, dim=128),
        ser=SERConfig(share=0.125, hidden=256),
        optim=replace(config.optim, lr=6e-4),
        train=replace(config.train, batch_size=128),
        runtime=replace(config.runtime, workers=2),
    )


def mocov3_small() -> Config:
    """MoCo-v3 alone at the small size"""
    return _base_only(ser_small(), "mocov3-small")


def control_small() -> Config:
    """Late CLS and posed views with weight 0 at the small size"""
    return _control(ser_small(), "control-small")


def ser_tiny() -> Config:
    """SER on MoCo-v3, a ViT of width 128 and depth 6 on 32 px images in patches of 8: minutes on two cores"""
    config = ser_small()
    mild = Photometric(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=0.0)
    return replace(
        config,
        recipe="ser-tiny",
        backbone=replace(
            config.backbone, image_size=32, patch_size=8, embed_dim=128, depth=6, num_heads=4, cls_layer=2
        ),
        views=replace(config.views, crop_scale=(0.3, 1.0), flip=0.0, interpolation="bicubic", first=mild, second=mild),
        ser=SERConfig(weight=3.0, layers=(2,), share=0.25, area=(0.5, 1.6), hidden=128),
        optim=replace(config.optim, lr=2e-3, warmup_epochs=3),
        train=replace(config.train, batch_size=128, epochs=24),
        evaluation=replace(config.evaluation, crop=1.0),
    )


def mocov3_tiny() -> Config:
    """MoCo-v3 alone at the tiny size"""
    return _base_only(ser_tiny(), "mocov3-tiny")


def control_tiny() -> Config:
    """Late CLS and posed views with weight 0 at the tiny size"""
    return _control(ser_tiny(), "control-tiny")


RECIPES: dict[str, Recipe] = {
    function.__name__.replace("_", "-"): function
    for function in (
        ser_imagenet,
        mocov3_imagenet,
        control_imagenet,
        ser_small,
        mocov3_small,
        control_small,
        ser_tiny,
        mocov3_tiny,
        control_tiny,
    )
}


def recipe(name: str) -> Config:
    """The configuration of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"unknown recipe {name!r}; {hint}There are: {', '.join(RECIPES)}")
    return RECIPES[name]()


def _base_only(config: Config, name: str) -> Config:
    return replace(config, recipe=name, ser=None, backbone=replace(config.backbone, cls_layer=0))


def _control(config: Config, name: str) -> Config:
    return replace(config, recipe=name, ser=replace(config.ser, weight=0.0) if config.ser else None)
