"""Two ways to say that row i of a and row i of b belong together, for add-ons that compare vectors.

original:   NT-Xent over the rows of both sets, as EquiMod's and STL's own code
comparison: MoCo-v3's term both ways (2 tau CE, keys of the other set without gradient), as the SER paper's comparison
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from equimid.errors import UserError
from equimid.losses import info_nce, nt_xent

__all__ = ["FORMS", "Form", "check_form", "contrast_both_ways"]

Form = Literal["comparison", "original"]


def contrast_both_ways(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """1/2 [ctr(a, b) + ctr(b, a)], (b, D) each; negatives lie in the other set only."""
    return (info_nce(a, b, temperature) + info_nce(b, a, temperature)) / 2


FORMS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"comparison": contrast_both_ways, "original": nt_xent}


def check_form(addon: str, form: str, temperature: float, **widths: int) -> None:
    """
    Raises:
        UserError: no such form, or a temperature or width that is not positive.
    """
    if form not in FORMS:
        raise UserError(f"{addon}.form is {form!r}; it must be one of {', '.join(FORMS)}")
    if not 0 < temperature < float("inf"):
        raise UserError(f"{addon}.temperature is {temperature}; it must be positive")
    for name, value in widths.items():
        if value < 1:
            raise UserError(f"{addon}.{name} is {value}; it must be 1 or more")
