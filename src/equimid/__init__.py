"""equimid: vision transformers that are equivariant in the middle and invariant at the end.

    import equimid
    backbone = equimid.load_backbone("runs/mine/backbone")
    features = backbone(images)          # features.cls (B, D), features.maps {layer: (B, D, h, w)}

Names are loaded at first use, so that `equimid --help` does not wait for torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "Pose": "equimid.poses",
    "transport": "equimid.poses",
    "create_backbone": "equimid.backbones",
    "load_backbone": "equimid.export",
    "patch_ntxent": "equimid.losses",
}

__all__ = ["Pose", "create_backbone", "load_backbone", "patch_ntxent", "transport"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'equimid' has no attribute {name!r}")
