"""SimCLR's NT-Xent (Chen et al. 2020, arXiv 2002.05709, equation 1 and algorithm 1).

Letters: b rows of this rank, B of all W ranks, D columns, s cosine, pi(i) the other view of row i.

    l_i = -s(i, pi(i)) / tau + log sum over j != i of exp(s(i, j) / tau),    L = mean over the 2B rows of both views
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from equimid.distributed import gather_with_gradient, mean_over_ranks, row_offset
from equimid.losses.checks import check_rows, check_temperature
from equimid.precision import l2_normalize, no_autocast

__all__ = ["nt_xent"]


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """Row i of z1 (b, D) and of z2 (b, D) are one positive pair, all other rows of all ranks negatives.

    The rows need not be normalised. Computed in float32 or wider inside any autocast. The gradient passes through the
    gathered rows too: over W ranks the mean of the values is the loss of the global batch, and the mean of the
    gradients its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the two do not have one shape (b, D), or the temperature is not positive.

    Example:
        >>> z1, z2 = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> loss = nt_xent(z1, z2, temperature=0.1)
        >>> loss.backward()
    """
    check_rows(z1=z1, z2=z2)
    check_temperature(temperature)
    with no_autocast(z1):
        z = torch.cat([l2_normalize(z1), l2_normalize(z2)])
        rows = torch.arange(len(z), device=z.device)
        first = row_offset(z)
        logits = z @ gather_with_gradient(z).T / temperature
        logits[rows, rows + first] = -math.inf
        return mean_over_ranks(F.cross_entropy(logits, rows.roll(len(z1)) + first, reduction="none"))
