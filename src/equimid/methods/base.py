"""What every base objective is to the task. A new one is its settings and its module:

@METHODS.register
@settings("method")
class MineConfig(MethodConfig):
    name: Literal["mine"] = "mine"
    def build(self, embed_dim): return Mine(self, embed_dim)

class Mine(Method):
    def forward(self, student, momentum, when): ...
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from equimid.schedules import StepInfo

__all__ = ["Method", "unordered_pairs", "view_pairs"]


class Method(nn.Module):
    """Embeddings of the views in, one scalar out. It never sees a backbone.

    Attributes:
        uses_momentum: whether the task keeps a momentum network
        ema_last:      whether that network follows after the optimizer's step (DINO) or before the forward pass
                       (MoCo-v3)
    """

    uses_momentum: bool = False
    ema_last: bool = False

    @abstractmethod
    def forward(self, student: Sequence[Tensor], momentum: Sequence[Tensor], when: StepInfo) -> Tensor:
        """The loss.

        Args:
            student: CLS embeddings (b, D) of every view; the first two are the full views that a momentum network
                sees too, further ones (a third full view, or small ones) are the student's alone.
            momentum: of the first two views by the momentum network, without gradient; empty where there is none.
            when: the step, for what changes with it.

        Returns:
            Scalar: over ranks its mean is the loss of the global batch, and the mean of the gradients its gradient.
        """

    def momentum_at(self, when: StepInfo) -> float:
        """EMA coefficient of a step."""
        return 0.0

    def momentum_heads(self) -> list[tuple[nn.Module, nn.Module]]:
        """Pairs (teacher, student) of this method's heads that the EMA moves."""
        return []

    def frozen_at(self, when: StepInfo) -> list[nn.Parameter]:
        """Parameters that this step leaves as they are."""
        return []


def view_pairs(views: int) -> list[tuple[int, int]]:
    """Ordered pairs (full view, other view): each of the first two views with every other; 2 pairs of 2 views, 10 of
    2 + 4."""
    return [(full, other) for full in range(2) for other in range(views) if other != full]


def unordered_pairs(views: int) -> list[tuple[int, int]]:
    """The pairs of `view_pairs` without their mirror images: 1 pair of 2 views, 9 of 2 + 4."""
    return [(full, other) for full, other in view_pairs(views) if full < other]
