"""What every add-on is to the task; `equimid.addons.config` has the template of a new one."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from equimid.features import Features
from equimid.views import Views

__all__ = ["Addon", "StudentOutputs"]


@dataclass(frozen=True)
class StudentOutputs:
    """What an add-on sees of this rank's b1 cropped and b2 posed images. Features are the student's own but where said.

    Attributes:
        crops:          per standard view, of b1 images
        extra:          {name: one Features per turn}, of the views that add-ons asked for, of the same b1 images
        posed:          per posed view, of b2 images
        momentum_posed: the same of the momentum network, without gradient; empty where there is none
        momentum_crops: of the first two standard views, of the momentum network; empty where there is none
        views:          poses, image_ids and what was drawn for every view
    """

    crops: Sequence[Features]
    extra: Mapping[str, Sequence[Features]] = field(default_factory=dict)
    posed: Sequence[Features] = ()
    momentum_posed: Sequence[Features] = ()
    momentum_crops: Sequence[Features] = ()
    views: Views = field(default_factory=lambda: Views([]))


class Addon(nn.Module):
    """A loss beside the base objective."""

    @abstractmethod
    def forward(self, outputs: StudentOutputs) -> Tensor:
        """Scalar, unweighted: over ranks its mean is the loss of the global batch, the mean of the gradients its
        gradient. Every parameter of the module takes part in it."""

    def regularised_maps(self, outputs: StudentOutputs) -> dict[str, Tensor]:
        """{"layer_3": (n, D, h, w)}: maps that should keep place, whose variance the run watches. {} = none."""
        return {}
