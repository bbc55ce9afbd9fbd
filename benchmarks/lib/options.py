"""What `python benchmarks/bench.py` can be asked. No torch here: the command line is made from it."""

from dataclasses import dataclass

__all__ = ["EvaluateOptions", "LoaderOptions", "LossOptions", "Options", "StepOptions"]


@dataclass(frozen=True)
class StepOptions:
    """A training step with and without SER, against a plain eager reading of the methods."""

    batch_size: int = 0
    """images of a step; 0 = 16 on a CPU, 256 on a GPU"""
    posed: int = 0
    """posed images of the batch with SER; 0 = the recipe's share of it, at least two"""
    image_size: int = 224
    """pixels"""
    name: str = "vit_small_patch16_224"
    """timm's name of the backbone"""
    precision: str = "auto"
    """fp32, bf16, or auto: as a run would choose"""
    compile: bool = False
    """compile the blocks, as runtime.compile does"""
    repeats: int = 6
    """rounds; medians are reported. Three draws of poses take turns: a multiple of three"""
    device: str = "auto"
    """auto, cpu or cuda"""


@dataclass(frozen=True)
class LossOptions:
    """The patch loss, forward and backward, beside the bare matrix products that it needs."""

    patches: tuple[int, ...] = (4704, 18816)
    """patches of a view"""
    width: int = 128
    """columns"""
    repeats: int = 5
    """rounds; medians are reported"""
    device: str = "auto"
    """auto, cpu or cuda"""


@dataclass(frozen=True)
class LoaderOptions:
    """Images per second and core, beside torchvision's ImageFolder pipeline."""

    data: str = ""
    """a folder of images or of shards; by default drawn photographs"""
    images: int = 300
    """of the data, at most; so many photographs are drawn where no data are given, at most 100"""
    photometric_images: int = 32
    """whose colours are changed"""
    image_size: int = 224
    """side of the two views, pixels"""
    workers: int = 0
    """loader processes; 0 = in this process, on one thread"""
    repeats: int = 5
    """rounds; medians are reported"""


@dataclass(frozen=True)
class EvaluateOptions:
    """kNN and linear probe beside the bare forward pass, an empty cache."""

    images: int = 2_000
    """training and test images together, four to one"""
    classes: int = 10
    """of the drawn images"""
    epochs: int = 100
    """of the linear probe"""
    workers: int = 0
    """loader processes"""
    repeats: int = 1
    """rounds; medians are reported"""
    device: str = "auto"
    """auto, cpu or cuda"""


Options = StepOptions | LossOptions | LoaderOptions | EvaluateOptions
