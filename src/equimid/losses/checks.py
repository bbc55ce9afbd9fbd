"""What the losses check of their inputs."""

from torch import Tensor

__all__ = ["check_rows", "check_temperature"]


def check_rows(**pair: Tensor) -> None:
    """
    Raises:
        ValueError: the two tensors, named as the loss names them, do not have one shape (b, D).
    """
    (one, a), (other, b) = pair.items()
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"{one} and {other} must have one shape (b, D), found {tuple(a.shape)} and {tuple(b.shape)}")


def check_temperature(temperature: float) -> None:
    """
    Raises:
        ValueError: it is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
