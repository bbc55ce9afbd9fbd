"""Base objectives on the final embedding. Each is one file; `Method` is what the task asks of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
