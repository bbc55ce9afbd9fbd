"""Images: where they come from, how a file becomes RGB, which ones are left out.

source = open_source("photos")                       # or "digits", "cifar10", "list.txt", what `pack` wrote
check = check_images(source, run_folder, smallest_side=16)
source = check.apply(source)
image = source.load(0)                               # PIL, RGB
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
