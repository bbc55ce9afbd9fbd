"""E-SSL (Dangovski et al. 2022, ICLR, "Equivariant Contrastive Learning"): predict by which quarter turn a small crop
was turned.

b images of this rank; z_k (b, D) their features of one small crop, turned by k quarter turns (counter-clockwise):

    L = mean over images and k = 0..3 of CE(head z_k, k)

The original's weights lambda: 0.4 beside SimCLR, 0.08 beside SimSiam, 8 beside Barlow Twins; the default is that of
SER's comparison. The original's detached online classifier is left out.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from equimid.addons.base import Addon, StudentOutputs
from equimid.addons.config import ESSLConfig
from equimid.distributed import mean_over_ranks
from equimid.precision import no_autocast, upcast

__all__ = ["ESSL", "turn_loss"]

_TURNS = 4


class ESSL(Addon):
    """The head, and L.

    Example:
        >>> addon = ESSL(ESSLConfig(), embed_dim=384)
        >>> turned = [Features(torch.randn(8, 384)) for _ in range(4)]  # one small crop at four quarter turns
        >>> loss = addon(StudentOutputs([], {"essl": turned}))
    """

    def __init__(self, config: ESSLConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        self.head = _head((embed_dim, *(config.widths or (embed_dim, embed_dim, 256))))

    def forward(self, outputs: StudentOutputs) -> Tensor:
        """L, of this rank's share; a rank may have no images."""
        turned = [self.config.read(features) for features in outputs.extra[self.config.name]]
        return turn_loss(self.head(torch.cat(turned)))


def turn_loss(logits: Tensor) -> Tensor:
    """L of logits (4b, 4): those of all images upright, then of all turned once, twice, three times.

    Computed in float32 or wider inside any autocast. Over W ranks the mean of the values is the mean over the rows of
    all ranks, and the mean of the gradients its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the logits do not have that shape.
    """
    if logits.ndim != 2 or logits.shape[1] != _TURNS or len(logits) % _TURNS:
        raise ValueError(f"logits must be (4b, 4), found {tuple(logits.shape)}")
    labels = torch.arange(_TURNS, device=logits.device).repeat_interleave(len(logits) // _TURNS)
    with no_autocast(logits):
        return mean_over_ranks(F.cross_entropy(upcast(logits), labels, reduction="none"))


def _head(widths: Sequence[int]) -> nn.Sequential:
    """E-SSL's predictor: linear, layer norm and ReLU; the last hidden layer without ReLU; a linear. All have biases."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1], nn.Linear(widths[-1], _TURNS))
