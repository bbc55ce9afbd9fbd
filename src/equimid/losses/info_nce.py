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
from equimid.precision import l2_normalize, no_autocast

__all__ = ["info_nce"]


def info_nce(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Queries (b, D) against the keys (b, D) of all ranks; row i of both is one image. Need not be normalised.

    Computed in float32 or wider inside any autocast. Over W ranks the mean of the ranks' values is the loss of the
    global batch, and the mean of their gradients its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not have one shape (b, D), or the temperature is not positive.

    Example:
        >>> q, k = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> loss = info_nce(q, k, temperature=0.2)
    """
    check_rows(q=q, k=k)
    check_temperature(temperature)
    with no_autocast(q):
        q, k = l2_normalize(q), l2_normalize(k)
        keys = gather_detached(k)
        first = row_offset(q)
        targets = torch.arange(first, first + len(q), device=q.device)
        own_mean = F.cross_entropy(q @ keys.T / temperature, targets, reduction="sum") / max(len(q), 1)
        # W b / B is 1 where every rank has as many images
        fraction = world_size() * len(q) / max(len(keys), 1)
        return own_mean * (2 * temperature * fraction)


def mocov3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss of two views' queries (b, D) and momentum keys (b, D); precision, ranks and errors as
    for `info_nce`.

    Returns:
        Scalar.

    Example:
        >>> q1, q2, k1, k2 = torch.randn(4, 8, 32)
        >>> loss = mocov3_loss(q1, q2, k1, k2, temperature=0.2)
    """
    return info_nce(q1, k2, temperature) + info_nce(q2, k1, temperature)
