"""MoCo-v3's loss (Chen et al. 2021, arXiv 2104.02057, algorithm 1).

Letters: b images of this rank, B of all W ranks, D columns.

    ctr(q, k) = 2 tau CE(q K^T / tau, own image),    L = ctr(q1, k2) + ctr(q2, k1)

K are the normalised keys of all ranks, without gradient. The factor 2 tau is kept: it gives a weighted add-on
its meaning.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.distributed import gather_detached, row_offset, world_size
from equimid.losses.precision import no_autocast, unit_rows

__all__ = ["mocov3_loss"]


def mocov3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss of two views' queries (b, D) and momentum keys (b, D); need not be normalised.

    Computed in float32 or wider inside any autocast. Over W ranks the mean of the ranks' values is the loss of the
    global batch, and the mean of their gradients its gradient; row counts may differ between ranks.

    Returns:
        Scalar.

    Raises:
        ValueError: the four do not have one shape (b, D), or the temperature is not positive.
    """
    if not q1.shape == q2.shape == k1.shape == k2.shape or q1.ndim != 2:
        shapes = [tuple(x.shape) for x in (q1, q2, k1, k2)]
        raise ValueError(f"q1, q2, k1, k2 must have one shape (b, D), found {shapes}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    with no_autocast(q1):
        return _contrast(q1, k2, temperature) + _contrast(q2, k1, temperature)


def _contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    q, k = unit_rows(q), unit_rows(k)
    keys = gather_detached(k)
    first = row_offset(q)
    targets = torch.arange(first, first + len(q), device=q.device)
    # W b / B is 1 where every rank has as many images
    share = world_size() * len(q) / len(keys)
    return F.cross_entropy(q @ keys.T / temperature, targets) * (2 * temperature * share)
