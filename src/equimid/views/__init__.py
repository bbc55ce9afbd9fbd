"""Views: what a method asks for (`ViewPlan`), and its realisation in the workers and on the device."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
