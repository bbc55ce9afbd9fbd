"""Images: where they come from, how a file becomes RGB, which ones are left out.

source = open_source("photos")                       # or "digits", "cifar10", "list.txt", what `pack` wrote
ledger = ledger_for(source, run_folder, smallest_side=16)
source = ledger.apply(source)
image = source.load(0)                               # PIL, RGB
"""

from equimid.data.builtin import data_home
from equimid.data.check_images import ImageCheck, check_images, image_check_for
from equimid.data.config import DataConfig
from equimid.data.decode import IMAGE_SUFFIXES, open_image, read_size
from equimid.data.loading import leave_signals_to_the_main_process, loaded_batches
from equimid.data.open import KNOWN_NAMES, open_source
from equimid.data.shards.pack import Packed, pack
from equimid.data.shards.source import ShardSource
from equimid.data.sources import ArraySource, FileSource, Source, TorchvisionSource, holdout

__all__ = [
    "IMAGE_SUFFIXES",
    "KNOWN_NAMES",
    "ArraySource",
    "DataConfig",
    "FileSource",
    "ImageCheck",
    "Packed",
    "ShardSource",
    "Source",
    "TorchvisionSource",
    "check_images",
    "data_home",
    "holdout",
    "image_check_for",
    "leave_signals_to_the_main_process",
    "loaded_batches",
    "open_image",
    "open_source",
    "pack",
    "read_size",
]
