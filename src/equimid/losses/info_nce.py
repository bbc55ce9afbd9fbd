"""The contrastive term of MoCo-v3 (Chen et al. 2021, arXiv 2104.02057, algorithm 1).

Letters: b rows of this rank, B of all W ranks, D columns.

    ctr(q, k) = 2 tau CE(q K^T / tau, own row)

K are the normalised keys of all ranks, without gradient. The factor 2 tau is kept: it gives a weighted add-on its
meaning.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.distributed import gather_detached, row_offset, world_size
from equimid.losses.checks import check_rows, check_temperature
from equimid.precision import no_autocast, unit_rows

__all__ = ["contrast"]


def contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Queries (b, D) against the keys (b, D) of all ranks; row i of both is one image. Need not be normalised.

    Computed in float32 or wider inside any autocast. Over W ranks the mean of the ranks' values is the loss of the
    global batch, and the mean of their gradients its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not have one shape (b, D), or the temperature is not positive.
    """
    check_rows(q=q, k=k)
    check_temperature(temperature)
    with no_autocast(q):
        q, k = unit_rows(q), unit_rows(k)
        keys = gather_detached(k)
        first = row_offset(q)
        targets = torch.arange(first, first + len(q), device=q.device)
        own_mean = F.cross_entropy(q @ keys.T / temperature, targets, reduction="sum") / max(len(q), 1)
        # W b / B is 1 where every rank has as many images
        share = world_size() * len(q) / max(len(keys), 1)
        return own_mean * (2 * temperature * share)


def mocov3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss of two views' queries (b, D) and momentum keys (b, D); precision, ranks and errors as
    for `contrast`.

    Returns:
        Scalar.
    """
    return contrast(q1, k2, temperature) + contrast(q2, k1, temperature)
