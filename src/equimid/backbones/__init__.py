"""Backbones: timm vision transformers with CLS entering after block k, and taps on token maps."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
