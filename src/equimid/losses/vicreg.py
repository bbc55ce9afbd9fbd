"""VICReg's loss (Bardes, Ponce, LeCun 2022, arXiv 2105.04906, equations 1 to 6).

Letters: b rows of this rank, B of all W ranks, D columns, C(z) the unbiased covariance (D, D) over B rows.

    L = invariance * mean of (z1 - z2)^2
      + variance   * sum over z of mean over i of relu(1 - sqrt(C(z)_ii + 1e-4)) / 2
      + covariance * sum over z of (sum over i != j of C(z)_ij^2) / D

The halves are those of the authors' code (`facebookresearch/vicreg`), which the published weights belong to.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.distributed import mean_over_ranks, sum_detached, sum_with_gradient
from equimid.losses.barlow_twins import off_diagonal
from equimid.losses.checks import check_rows
from equimid.precision import no_autocast, upcast

__all__ = ["vicreg_loss"]


def vicreg_loss(
    z1: Tensor, z2: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """Row i of z1 (b, D) and of z2 (b, D) are two views of one image.

    Computed in float32 or wider inside any autocast. Covariances are those of the global batch and their gradient
    crosses ranks: over W ranks the mean of the values is the loss of the global batch, and the mean of the gradients
    its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not have one shape (b, D).

    Example:
        >>> z1, z2 = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> loss = vicreg_loss(z1, z2)
        >>> loss.backward()
    """
    check_rows(z1=z1, z2=z2)
    with no_autocast(z1):
        z1, z2 = upcast(z1), upcast(z2)
        loss = invariance * mean_over_ranks((z1 - z2).pow(2).mean(1))
        for z in (z1, z2):
            c = _covariance(z)
            spread = F.relu(1 - torch.sqrt(torch.diagonal(c) + 1e-4)).mean()
            loss = loss + variance * spread / 2 + covariance * off_diagonal(c).pow(2).sum() / len(c)
        return loss


def _covariance(z: Tensor) -> Tensor:
    count = sum_detached(torch.full((), float(len(z)), device=z.device, dtype=z.dtype))
    centred = z - sum_with_gradient(z.sum(0)) / count
    return sum_with_gradient(centred.T @ centred) / (count - 1).clamp(min=1)
