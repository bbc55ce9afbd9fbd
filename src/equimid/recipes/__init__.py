"""Recipes: runs by name, ROW-SIZE, such as `ser-tiny`.

A row is a run of the paper's comparison at ImageNet scale (`bases.py`, `rows.py`), a size an edit of any row
(`sizes.py`). Beside the rows, any base goes with any add-on: BASE+ADDON-SIZE, with @LAYER to move the add-on, as in
`dino+essl@3-tiny`.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

from equimid.config import Config, override
from equimid.errors import UserError
from equimid.recipes.bases import BASES, ROWS, Row
from equimid.recipes.rows import ADDITIONS, combined
from equimid.recipes.sizes import SIZES

__all__ = ["ADDITIONS", "BASES", "ROWS", "SIZES", "Row", "configured", "names", "parent", "recipe"]

_DEPTH = 12  # blocks of ViT-S and ViT-Ti; the tiny size halves the layer
_COMBINED = re.compile(r"^([a-z0-9]+)\+([a-z0-9]+)(?:@(\d+))?$")


def names() -> list[str]:
    """All rows in all sizes."""
    return [f"{row}-{size}" for row in ROWS for size in SIZES]


def recipe(name: str) -> Config:
    """The configuration of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    row, _, size = name.rpartition("-")
    if size not in SIZES:
        whole = [f"{name}-small"] if name in ROWS or _COMBINED.match(name) else names()
        raise UserError(f"unknown recipe {name!r}; {_near(name, whole)}Sizes are: {', '.join(SIZES)}")
    match = _COMBINED.match(row)
    if match and match[3] and not 1 <= int(match[3]) <= _DEPTH:
        raise UserError(f"unknown recipe {name!r}; the network of a recipe has the layers 1 to {_DEPTH}")
    if match and match[1] in BASES and match[2] in ADDITIONS:
        return SIZES[size](combined(match[1], match[2], None if match[3] is None else int(match[3])))
    if match:
        raise UserError(
            f"unknown recipe {name!r}; bases are {', '.join(BASES)} and add-ons {', '.join(ADDITIONS)}, as in "
            "dino+essl-tiny"
        )
    if row not in ROWS:
        more = "or BASE+ADDON, as dino+essl, with more add-ons as settings"
        raise UserError(f"unknown recipe {name!r}; {_near(name, names())}Rows are: {', '.join(ROWS)}; {more}")
    return SIZES[size](ROWS[row].make())


def configured(name: str, settings: Sequence[str]) -> Config:
    """The recipe with `key=value` settings; an add-on that they add starts as the recipes of its size have it.

    Raises:
        UserError: see `recipe` and `equimid.config.override`.
    """
    config, size = recipe(name), name.rpartition("-")[2]
    added = {setting.partition(".")[0] for setting in settings} & set(ADDITIONS) - set(config.addons)
    starting = {addition: recipe(f"mocov3+{addition}-{size}").addons[addition] for addition in added}
    return override(config, settings, starting)


def parent(name: str) -> str | None:
    """The recipe that this one is an edit of: its row's parent at the same size, or of a base, the next larger size."""
    row, _, size = name.rpartition("-")
    match = _COMBINED.match(row)
    above = match[1] if match else ROWS[row].parent
    if above:
        return f"{above}-{size}"
    larger = [s for s in SIZES if list(SIZES).index(s) < list(SIZES).index(size)]
    return f"{row}-{larger[-1]}" if larger else None


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}? " if near else ""
