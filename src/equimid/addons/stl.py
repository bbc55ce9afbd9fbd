"""STL (Yu et al. 2024, NeurIPS, "Self-supervised Transformation Learning for Equivariant Representations").

Images 2j and 2j + 1 are a pair that shares crop, jitter and grey in each view; i' is the other image of i's pair. A
transformation is told by two views of one image and applied to the other image of the pair:

    t_12 = g([y_1, y_2]),  t_21 = g([y_2, y_1]),    y^_1 = M(t_21 of i') y_2,  y^_2 = M(t_12 of i') y_1
    L = L_equi(p(y), p(y^)) + w L_trans(q(t of even images), q(t of odd images)),

g, p, q two-layer nets, M a linear map from t to a D x D matrix.
"""

import torch
from torch import Tensor, nn

from equimid.addons.base import Addon, StudentOutputs
from equimid.addons.config import STLConfig
from equimid.addons.forms import FORMS
from equimid.distributed import CrossRankBatchNorm1d

__all__ = ["STL"]


class STL(Addon):
    """g, M, p, q, and the loss.

    Example:
        >>> addon = STL(STLConfig(), embed_dim=384)
        >>> views = [Features(torch.randn(8, 384)) for _ in range(2)]  # images 2j and 2j + 1 are a pair
        >>> loss = addon(StudentOutputs(views))
    """

    def __init__(self, config: STLConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        t = config.trans_dim
        self.trans_net = _two_layers(2 * embed_dim, t, t)
        self.hypernetwork = nn.Linear(t, embed_dim * embed_dim, bias=False)
        self.projector = _two_layers(embed_dim, config.hidden, config.dim)
        self.trans_projector = _two_layers(t, t, config.dim)

    def forward(self, outputs: StudentOutputs) -> Tensor:
        y1, y2 = (self.config.read(f) for f in outputs.crops[:2])
        if len(y1) % 2:
            raise ValueError(f"found {len(y1)} cropped images on a rank; STL expects whole pairs")
        # each batch through the nets on its own, as in the original: their norms see one kind of row
        t12, t21 = self.trans_net(torch.cat([y1, y2], 1)), self.trans_net(torch.cat([y2, y1], 1))
        moved1, moved2 = self.move(y2, _swapped(t21)), self.move(y1, _swapped(t12))
        loss, p, q = FORMS[self.config.form], self.projector, self.trans_projector
        equi = loss(torch.cat([p(y1), p(y2)]), torch.cat([p(moved1), p(moved2)]), self.config.temperature)
        even, odd = torch.cat([t12[0::2], t21[0::2]]), torch.cat([t12[1::2], t21[1::2]])
        trans = loss(q(even), q(odd), self.config.temperature)
        return equi + self.config.trans_weight * trans

    def move(self, y: Tensor, t: Tensor) -> Tensor:
        """M(t) y: (b, D) by (b, T) to (b, D)."""
        matrices = self.hypernetwork(t).view(len(y), y.shape[1], y.shape[1])
        return torch.einsum("bij,bj->bi", matrices, y.to(matrices.dtype))


def _two_layers(before: int, hidden: int, after: int) -> nn.Sequential:
    """Bias-free linear, cross-rank batch norm, ReLU, bias-free linear."""
    return nn.Sequential(
        nn.Linear(before, hidden, bias=False),
        CrossRankBatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, after, bias=False),
    )


def _swapped(rows: Tensor) -> Tensor:
    """Rows 2j and 2j + 1 exchanged."""
    return rows.view(len(rows) // 2, 2, rows.shape[1]).flip(1).flatten(0, 1)
