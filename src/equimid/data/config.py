"""Which images a run is trained on."""

from dataclasses import dataclass
from typing import Literal

from equimid.errors import UserError

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """
    source: a folder, packed or not, a text file of paths, or a name such as digits
    tolerated_unreadable: fraction of the images that may be left out before it is an error
    shuffle: whole, an order of all images; or shards, for packed images on a network disk: see docs/shards.md
    shards_at_once: with shuffle=shards, how many shards are mixed, and read from, at a time
    """

    source: str = "digits"
    tolerated_unreadable: float = 0.05
    shuffle: Literal["whole", "shards"] = "whole"
    shards_at_once: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.tolerated_unreadable <= 1:
            raise UserError(f"data.tolerated_unreadable is {self.tolerated_unreadable}; it must lie in 0..1")
        if self.shards_at_once < 1:
            raise UserError(f"data.shards_at_once is {self.shards_at_once}; it must be at least 1")
