"""The patch loss through FlexAttention's log-sum-exp: a candidate for CUDA, timed beside ours by the loss benchmark.

Letters: M patches of a view, D columns, t temperature. The patches of both views are queries and keys at once, and

    lse_p = log sum over q of exp(z_p . z_q / t + (0 if I(q) != I(p) else -inf))

is attention's own normaliser; the gradient is taken through it alone, the attention's output is thrown away. Ids are
compared inside the kernel, so no block mask is built (an eager one is M x M). One process only, and every similarity
is computed for each of its patches. PyTorch offers no gradient of it on the CPU. Not run on a GPU yet.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from equimid.precision import l2_normalize, no_autocast

__all__ = ["flex_patch_ntxent"]

# The fewest columns of a value that the kernels take; the values are not used.
_VALUE = 16


def flex_patch_ntxent(
    z0: Tensor,
    z1: Tensor,
    image_ids: Tensor,
    temperature: float,
    dtype: torch.dtype | None = None,
    compiled: bool = True,
) -> Tensor:
    """`equimid.losses.patch_ntxent` of one process.

    Args:
        z0, z1, image_ids, temperature: as there.
        dtype: of the similarities' factors; bfloat16 uses the fast matrix units, None keeps float32.
        compiled: False runs the definition, in M^2 memory.

    Returns:
        Scalar in float32 or wider.
    """
    with no_autocast(z0):
        z0, z1 = l2_normalize(z0), l2_normalize(z1)
        positives = (z0 * z1).sum(1).repeat(2) / temperature
        z = torch.cat([z0, z1]).to(dtype or z0.dtype)
        negatives = _lse(z, image_ids.repeat(2), temperature, compiled).to(positives.dtype)
        return (torch.logaddexp(positives, negatives) - positives).mean()


def _lse(z: Tensor, ids: Tensor, temperature: float, compiled: bool) -> Tensor:
    """(2M,): over the rows of other images."""

    def other_images(score: Tensor, b: Tensor, h: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return torch.where(ids[p] == ids[q], -float("inf"), score)

    attention = _compiled() if compiled else cast(Callable[..., Any], flex_attention)
    rows = z[None, None]
    unused = rows.new_zeros(1, 1, len(z), _VALUE)
    _, more = attention(rows, rows, unused, other_images, scale=1 / temperature, return_aux=AuxRequest(lse=True))
    lse: Tensor = more.lse[0, 0]
    return lse


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)
