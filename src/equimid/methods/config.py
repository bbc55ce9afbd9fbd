"""Settings of the base objectives. Each class builds its method; importing this file does not import torch."""

from typing import TYPE_CHECKING, Annotated, Literal

from equimid.errors import UserError
from equimid.plugins import Registry
from equimid.settings import setting, settings

if TYPE_CHECKING:
    from equimid.methods.base import Method

__all__ = [
    "METHODS",
    "BYOLConfig",
    "BarlowTwinsConfig",
    "DINOConfig",
    "MethodConfig",
    "MoCoV3Config",
    "SimCLRConfig",
    "SimSiamConfig",
    "VICRegConfig",
]


@settings("method")
class MethodConfig:
    """Settings of a base objective. A subclass narrows `name` to a Literal: its registered name and its loss's."""

    name: Annotated[str, setting("which base objective")] = ""

    def build(self, embed_dim: int) -> "Method":
        """The objective for CLS embeddings of `embed_dim` columns."""
        raise UserError(f"the method {self.name!r} has no build(embed_dim): write one that gives its Method")


METHODS: Registry[type[MethodConfig]] = Registry("method", "equimid.methods", MethodConfig)


@METHODS.register
@settings("method")
class MoCoV3Config(MethodConfig):
    """See `equimid.methods.mocov3`."""

    name: Annotated[Literal["mocov3"], setting("MoCo-v3")] = "mocov3"
    temperature: Annotated[float, setting("tau of the contrastive loss", gt=0)] = 0.2
    momentum: Annotated[
        float, setting("EMA coefficient of the momentum network at step 0; 1 at the end", ge=0, le=1)
    ] = 0.99
    hidden: Annotated[int, setting("width of the heads", ge=1)] = 4096
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 256
    multi_crop: Annotated[
        Literal["mean", "sum"],
        setting("of three or more views: mean keeps the scale of two; sum adds the terms of all pairs up as the SER "
                "release does (of 2 + 4 views 5 times as much, which dilutes an add-on)"),
    ] = "mean"  # fmt: skip

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.mocov3 import MoCoV3

        return MoCoV3(self, embed_dim)


@METHODS.register
@settings("method")
class DINOConfig(MethodConfig):
    """See `equimid.methods.dino`."""

    name: Annotated[Literal["dino"], setting("DINO")] = "dino"
    out_dim: Annotated[int, setting("prototypes", ge=1)] = 65536
    hidden: Annotated[int, setting("width of the head", ge=1)] = 2048
    bottleneck: Annotated[int, setting("width of its last hidden layer", ge=1)] = 256
    norm_last_layer: Annotated[
        bool, setting("whether the prototypes keep length 1 (the original trains ViT-S without)")
    ] = False
    student_temperature: Annotated[float, setting("tau_s", gt=0)] = 0.1
    teacher_temperature_start: Annotated[float, setting("tau_t in epoch 0", gt=0)] = 0.04
    teacher_temperature: Annotated[float, setting("tau_t from the last epoch of its warm-up on", gt=0)] = 0.04
    teacher_warmup_epochs: Annotated[
        int, setting("of tau_t; 0 = none (the original also gives 0.04 to 0.07 over 30)", unit="epochs", ge=0)
    ] = 0
    center_momentum: Annotated[float, setting("of the center's EMA", ge=0, le=1)] = 0.9
    momentum: Annotated[
        float, setting("EMA coefficient of the momentum network at step 0; 1 at the end", ge=0, le=1)
    ] = 0.996
    freeze_last_layer_epochs: Annotated[
        int, setting("first epochs in which the prototypes stay as they are", unit="epochs", ge=0)
    ] = 1

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.dino import DINO

        return DINO(self, embed_dim)

    def teacher_temperature_at(self, epoch: int) -> float:
        """tau_t of an epoch, counted from 0."""
        start, end, last = self.teacher_temperature_start, self.teacher_temperature, self.teacher_warmup_epochs - 1
        if epoch > last:
            return end
        return start + (end - start) * epoch / max(last, 1)


@METHODS.register
@settings("method")
class BarlowTwinsConfig(MethodConfig):
    """See `equimid.methods.barlow_twins`."""

    name: Annotated[Literal["barlow_twins"], setting("Barlow Twins")] = "barlow_twins"
    off_diagonal_weight: Annotated[float, setting("lambda, of the off-diagonal entries", ge=0)] = 0.0051
    hidden: Annotated[int, setting("width of the projector", ge=1)] = 8192
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 8192

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.barlow_twins import BarlowTwins

        return BarlowTwins(self, embed_dim)


@METHODS.register
@settings("method")
class SimCLRConfig(MethodConfig):
    """See `equimid.methods.simclr`."""

    name: Annotated[Literal["simclr"], setting("SimCLR")] = "simclr"
    temperature: Annotated[float, setting("tau of NT-Xent", gt=0)] = 0.1
    hidden: Annotated[int, setting("width of the projector", ge=1)] = 2048
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 128

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.simclr import SimCLR

        return SimCLR(self, embed_dim)


@METHODS.register
@settings("method")
class VICRegConfig(MethodConfig):
    """See `equimid.methods.vicreg`."""

    name: Annotated[Literal["vicreg"], setting("VICReg")] = "vicreg"
    invariance: Annotated[float, setting("weight of the invariance term", ge=0)] = 25.0
    variance: Annotated[float, setting("weight of the variance term", ge=0)] = 25.0
    covariance: Annotated[float, setting("weight of the covariance term", ge=0)] = 1.0
    hidden: Annotated[int, setting("width of the expander", ge=1)] = 8192
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 8192

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.vicreg import VICReg

        return VICReg(self, embed_dim)


@METHODS.register
@settings("method")
class SimSiamConfig(MethodConfig):
    """See `equimid.methods.simsiam`."""

    name: Annotated[Literal["simsiam"], setting("SimSiam")] = "simsiam"
    hidden: Annotated[int, setting("width of the projector", ge=1)] = 2048
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 2048
    bottleneck: Annotated[int, setting("hidden width of the predictor", ge=1)] = 512

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.simsiam import SimSiam

        return SimSiam(self, embed_dim)


@METHODS.register
@settings("method")
class BYOLConfig(MethodConfig):
    """See `equimid.methods.byol`."""

    name: Annotated[Literal["byol"], setting("BYOL")] = "byol"
    momentum: Annotated[
        float, setting("EMA coefficient of the momentum network at step 0; 1 at the end", ge=0, le=1)
    ] = 0.996
    hidden: Annotated[int, setting("width of the heads", ge=1)] = 4096
    dim: Annotated[int, setting("columns of the embedding", ge=1)] = 256

    def build(self, embed_dim: int) -> "Method":
        from equimid.methods.byol import BYOL

        return BYOL(self, embed_dim)
