"""What a backbone says of images: the one value that backbones give and that methods and add-ons receive."""

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["Features"]


@dataclass(frozen=True)
class Features:
    """Features of a batch of B images, D columns.

    Attributes:
        cls:    (B, D) after the final norm
        maps:   {layer: (B, D, h, w)} after that tap's norm
        cls_at: {layer: (B, D)}, CLS after that block and tap's norm; layers above the one after which CLS enters
    """

    cls: Tensor
    maps: dict[int, Tensor] = field(default_factory=dict)
    cls_at: dict[int, Tensor] = field(default_factory=dict)
