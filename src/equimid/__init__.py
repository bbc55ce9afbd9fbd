"""equimid: vision transformers that are equivariant in the middle and invariant at the end.

    import equimid

    run = equimid.pretrain("photos", "runs/mine", recipe="ser-small")
    backbone = equimid.load_backbone(run)
    features = backbone(images)          # features.cls (B, D), features.maps {layer: (B, D, h, w)}

Names are imported when they are first used, so that `import equimid` does not wait for torch.
"""

from importlib.metadata import version as _version

import lazy_loader

__getattr__, _names, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = _version("equimid")
__all__ += ["__version__"]


def __dir__() -> list[str]:
    return sorted(__all__)
