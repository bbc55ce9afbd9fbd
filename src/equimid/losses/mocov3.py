"""MoCo-v3's loss of two views (Chen et al. 2021, arXiv 2104.02057, algorithm 1).

L = ctr(q1, k2) + ctr(q2, k1)
"""

from torch import Tensor

from equimid.losses.contrast import contrast

__all__ = ["mocov3_loss"]


def mocov3_loss(q1: Tensor, q2: Tensor, k1: Tensor, k2: Tensor, temperature: float) -> Tensor:
    """Symmetric contrastive loss of two views' queries (b, D) and momentum keys (b, D); precision, ranks and errors as
    for `contrast`.

    Returns:
        Scalar.
    """
    return contrast(q1, k2, temperature) + contrast(q2, k1, temperature)
