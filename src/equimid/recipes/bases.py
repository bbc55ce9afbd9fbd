"""The base methods at ImageNet scale, as the paper's comparison trains them and as they were published."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from equimid.backbones import BackboneConfig
from equimid.config import Config
from equimid.engine import OptimConfig, RuntimeConfig, TrainConfig
from equimid.evaluation import DetectionConfig, EvaluationConfig
from equimid.methods import (
    BarlowTwinsConfig,
    BYOLConfig,
    DINOConfig,
    MethodConfig,
    SimCLRConfig,
    SimSiamConfig,
    VICRegConfig,
)
from equimid.methods import MoCoV3Config as MoCoV3
from equimid.views import LocalViews, Photometric, ViewsConfig

__all__ = ["BASES", "ROWS", "Row", "row", "with_views"]

Edit = Callable[[Config], Config]


@dataclass(frozen=True)
class Row:
    """A recipe at ImageNet scale.

    Attributes:
        parent:    the row that it is an edit of, "" for a base
        published: linear top-1 on ImageNet-1k in percent that the paper (arXiv 2603.06693) gives for these settings, ""
                   where it gives none; `equimid.report.published` has the settings that decide
    """

    make: Callable[[], Config]
    parent: str
    published: str

    @property
    def text(self) -> str:
        """What it is, in a line."""
        return (self.make.__doc__ or "").strip()


ROWS: dict[str, Row] = {}


def row(name: str, parent: str = "", published: str = "") -> Callable[[Callable[[], Config]], Callable[[], Config]]:
    def add(make: Callable[[], Config]) -> Callable[[], Config]:
        def named() -> Config:
            return replace(make(), recipe=f"{name}-imagenet")

        named.__doc__ = make.__doc__
        ROWS[name] = Row(named, parent, published)
        return named

    return add


# ---- base methods, as the SER comparison trains them: ViT-S/16 at 224 px, batch 2048, 100 epochs ------------------

# the comparison's linear probe as published: 50 passes of random crops over the images, CLS of the last four blocks;
# the bases as they were published have crops too, with their own features and rates. Detection as on COCO.
_MEASURED = EvaluationConfig(
    linear_crops=True, linear_features="last4", linear_epochs=50, linear_batch=2048,
    linear_rates=(0.1, 0.3, 1.0, 3.0, 10.0),
    detection=DetectionConfig(
        steps=90_000, batch_size=16, image_size=1024, width=256, proposals=1000, anchor=32, rate=1e-4
    ),
)  # fmt: skip
_SHARED: dict[str, Any] = {
    "train": TrainConfig(batch_size=2048, epochs=100), "evaluation": _MEASURED, "runtime": RuntimeConfig(workers=8),
}  # fmt: skip
_TRAINED_PATCHES: dict[str, Any] = {"positions": "learned", "init": "dino", "freeze_patch_embed": False}


def with_views(config: Config, **changes: Any) -> Config:
    return replace(config, views=replace(config.views, **changes))


def _moco_like(method: MethodConfig) -> Config:
    """MoCo-v3's vision transformer, views and optimizer under another objective."""
    return Config(
        backbone=BackboneConfig(cls_layer=0),
        method=method,
        optim=OptimConfig(lr=3e-4, warmup_epochs=10),
        **_SHARED,
    )


@row("mocov3", published="68.44")
def mocov3() -> Config:
    """MoCo-v3 alone, the ordinary vision transformer"""
    return _moco_like(MoCoV3())


@row("dino")
def dino() -> Config:
    """DINO alone, two views"""
    return Config(
        backbone=BackboneConfig(cls_layer=0, drop_path=0.1, **_TRAINED_PATCHES),
        views=ViewsConfig(crop_scale=(0.25, 1.0), interpolation="bicubic"),
        method=DINOConfig(teacher_temperature=0.07, teacher_warmup_epochs=10, momentum=0.982),
        # final_lr: 1e-5 at batch 2048
        optim=OptimConfig(
            lr=1e-4, final_lr=1.25e-6, warmup_epochs=10, schedule="dino", weight_decay=0.04, weight_decay_end=0.4,
            decay_1d=False, clip=0.3, clip_per_parameter=True,
        ),
        **_SHARED,
    )  # fmt: skip


@row("barlow")
def barlow() -> Config:
    """Barlow Twins alone, with AdamW"""
    return Config(
        backbone=BackboneConfig(cls_layer=0, **_TRAINED_PATCHES),
        views=ViewsConfig(interpolation="bicubic"),
        method=BarlowTwinsConfig(),
        optim=OptimConfig(lr=1e-4, final_lr=1e-7, warmup_epochs=10, clip=0.3, clip_per_parameter=True),
        **_SHARED,
    )


@row("simclr")
def simclr() -> Config:
    """SimCLR with MoCo-v3's network, views and optimizer"""
    return _moco_like(SimCLRConfig())


@row("vicreg")
def vicreg() -> Config:
    """VICReg with MoCo-v3's network, views and optimizer"""
    return _moco_like(VICRegConfig())


@row("simsiam")
def simsiam() -> Config:
    """SimSiam with MoCo-v3's network, views and optimizer"""
    return _moco_like(SimSiamConfig())


@row("byol")
def byol() -> Config:
    """BYOL with MoCo-v3's network, views and optimizer"""
    return _moco_like(BYOLConfig())


# ---- base methods as they were published ---------------------------------------------------------------------------


@row("mocov3-published")
def mocov3_published() -> Config:
    """MoCo-v3 as published: 12 heads, batch 4096, 300 epochs"""
    return replace(
        mocov3(),
        backbone=BackboneConfig(cls_layer=0, num_heads=12),
        optim=OptimConfig(lr=1.5e-4, warmup_epochs=40),
        train=TrainConfig(batch_size=4096, epochs=300),
        evaluation=replace(_MEASURED, linear_features="cls", linear_epochs=90, linear_batch=1024, linear_rates=(3.0,)),
    )


@row("dino-published")
def dino_published() -> Config:
    """DINO as published: eight small views, batch 1024, here for 100 epochs"""
    local = LocalViews(count=8, size=96, scale=(0.05, 0.4), photometric=Photometric(blur=0.5))
    config = with_views(dino(), crop_scale=(0.4, 1.0), local=local)
    return replace(
        config,
        method=DINOConfig(),
        evaluation=replace(_MEASURED, network="momentum", linear_epochs=100, linear_batch=1024, linear_rates=(0.001,)),
        # final_lr: 1e-6 at batch 1024
        optim=replace(config.optim, lr=5e-4, final_lr=2.5e-7, clip=3.0),
        train=TrainConfig(batch_size=1024, epochs=100),
    )


@row("barlow-published")
def barlow_published() -> Config:
    """Barlow Twins as published (there for a ResNet-50): LARS, batch 2048, here for 100 epochs"""
    return replace(
        barlow(),
        optim=OptimConfig(
            name="lars", lr=0.2, lr_1d=0.0048, final_lr=2e-4, warmup_epochs=10, weight_decay=1e-6, decay_1d=False
        ),
        evaluation=replace(_MEASURED, linear_features="cls", linear_epochs=100, linear_batch=256, linear_rates=(0.3,)),
    )


BASES: dict[str, Callable[[], Config]] = {
    "mocov3": mocov3, "dino": dino, "barlow": barlow, "simclr": simclr, "vicreg": vicreg, "simsiam": simsiam,
    "byol": byol,
}  # fmt: skip
