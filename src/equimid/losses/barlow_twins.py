"""Barlow Twins' loss (Zbontar et al. 2021, arXiv 2103.03230, equations 1 and 2).

Letters: b rows of this rank, B of all W ranks, D columns.

    C = bn(z1)^T bn(z2) / B,    L = sum over i of (C_ii - 1)^2 + lambda * sum over i != j of C_ij^2

bn standardises every column over the rows of all ranks (no affine, eps 1e-5). It belongs to the loss, as in the
original's code, so a projector before it ends without batch norm.
"""

import torch
from torch import Tensor

from equimid.distributed import standardise_over_ranks, sum_with_gradient
from equimid.losses.checks import check_rows
from equimid.precision import no_autocast

__all__ = ["barlow_twins_loss", "off_diagonal"]


def barlow_twins_loss(z1: Tensor, z2: Tensor, off_diagonal_weight: float = 0.0051) -> Tensor:
    """Row i of z1 (b, D) and of z2 (b, D) are two views of one image.

    Computed in float32 or wider inside any autocast. C is that of the global batch and its gradient crosses ranks:
    every rank returns the loss of the global batch, and the mean of the ranks' gradients is its gradient (the
    original's is 1/W of it). Row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not have one shape (b, D).

    Example:
        >>> z1, z2 = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> loss = barlow_twins_loss(z1, z2)
        >>> loss.backward()
    """
    check_rows(z1=z1, z2=z2)
    with no_autocast(z1):
        y1, *_ = standardise_over_ranks(z1, 1e-5)
        y2, _, _, count = standardise_over_ranks(z2, 1e-5)
        c = sum_with_gradient(y1.T @ y2) / count
        on_diagonal = (torch.diagonal(c) - 1).pow(2).sum()
        return on_diagonal + off_diagonal_weight * off_diagonal(c).pow(2).sum()


def off_diagonal(c: Tensor) -> Tensor:
    """The elements off the diagonal of a square matrix, as a view (D - 1, D) of it."""
    size = len(c)
    return c.flatten()[:-1].view(size - 1, size + 1)[:, 1:]
