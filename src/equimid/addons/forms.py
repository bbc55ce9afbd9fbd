"""Two ways to say that row i of a and row i of b belong together, for add-ons that compare vectors.

original:   NT-Xent over the rows of both sets, as EquiMod's and STL's own code
comparison: MoCo-v3's term both ways (2 tau CE, keys of the other set without gradient), as the SER paper's comparison
"""

from collections.abc import Callable

from torch import Tensor

from equimid.losses import info_nce, nt_xent

__all__ = ["FORMS", "contrast_both_ways"]


def contrast_both_ways(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """1/2 [ctr(a, b) + ctr(b, a)], (b, D) each; negatives lie in the other set only."""
    return (info_nce(a, b, temperature) + info_nce(b, a, temperature)) / 2


FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"comparison": contrast_both_ways, "original": nt_xent}
