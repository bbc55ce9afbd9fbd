"""Settings of the images that a run is trained on."""

from typing import Annotated, Literal

from equimid.settings import setting, settings

__all__ = ["DataConfig"]


@settings("data")
class DataConfig:
    """Which images a run is trained on, and in which order."""

    source: Annotated[
        str, setting("a folder of images or of shards, a text file of paths, or a name such as digits")
    ] = "digits"
    tolerated_unreadable: Annotated[
        float, setting("fraction of the images that may be left out before it is an error", ge=0, le=1)
    ] = 0.05
    shuffle: Annotated[
        Literal["whole", "shards"],
        setting("whole: an order of all images; shards: for shards on a network disk (docs/shards.md)"),
    ] = "whole"
    shards_at_once: Annotated[
        int, setting("with shuffle=shards: how many shards are mixed, and read from, at a time", unit="shards", ge=1)
    ] = 16
