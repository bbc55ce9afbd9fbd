"""Views: what a method asks for (`ViewPlan`), and how the workers and the device make them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
