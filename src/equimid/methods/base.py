"""What every base objective is to the task."""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["Method"]


class Method(nn.Module):
    """Features of the views in, one scalar out. It never sees a backbone.

    name:          the name of its loss in metrics
    uses_momentum: whether the task keeps a momentum network
    """

    name: str
    uses_momentum: bool

    @abstractmethod
    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor]) -> Tensor:
        """Loss of one CLS batch (b, D) per view, of the student and of the momentum network (empty without one)."""

    @abstractmethod
    def momentum_at(self, step: int, total: int) -> float:
        """EMA coefficient of a step."""

    @abstractmethod
    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs (follower, leader) of this method's heads that the EMA moves."""
