"""SimSiam's loss (Chen and He 2021, arXiv 2011.10566, equation 1): D(p, z) = -cosine(p, stopgrad(z))."""

from torch import Tensor

from equimid.distributed import mean_over_ranks
from equimid.losses.checks import check_rows
from equimid.precision import l2_normalize, no_autocast

__all__ = ["simsiam_loss"]


def simsiam_loss(p: Tensor, z: Tensor) -> Tensor:
    """Predictions p (b, D) of one view against projections z (b, D) of another, which get no gradient.

    Computed in float32 or wider inside any autocast. Over W ranks the mean of the values is the mean over the rows of
    all ranks, and the mean of the gradients its gradient; row counts may differ between ranks, also be 0.

    Returns:
        Scalar in -1..1.

    Raises:
        ValueError: the two do not have one shape (b, D).

    Example:
        >>> p, z = torch.randn(8, 32, requires_grad=True), torch.randn(8, 32)
        >>> simsiam_loss(p, z).backward()
    """
    check_rows(p=p, z=z)
    with no_autocast(p):
        return mean_over_ranks(-(l2_normalize(p) * l2_normalize(z.detach())).sum(1))
