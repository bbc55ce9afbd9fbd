"""Which images a run is trained on."""

from dataclasses import dataclass

from equimid.errors import UserError

__all__ = ["DataConfig"]


@dataclass(frozen=True)
class DataConfig:
    """
    source: a folder, a text file of paths, or a name such as digits
    tolerated_unreadable: share of the images that may be left out before it is an error
    """

    source: str = "digits"
    tolerated_unreadable: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.tolerated_unreadable <= 1:
            raise UserError(f"data.tolerated_unreadable is {self.tolerated_unreadable}; it must lie in 0..1")
