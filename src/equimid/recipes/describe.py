"""Recipes and settings as the command line and the documentation show them."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from equimid.addons import ADDONS
from equimid.config import Config, differences, flatten
from equimid.methods import METHODS
from equimid.recipes import ADDITIONS, BASES, ROWS, SIZES, configured, parent, recipe
from equimid.settings import Described, described

__all__ = ["every_setting", "list_recipes", "most_used", "show_recipe"]

_MOST_USED = (
    "train.epochs", "train.batch_size", "ser.weight", "ser.layers", "backbone.name", "backbone.image_size", "optim.lr",
    "runtime.devices", "runtime.precision", "runtime.workers",
)  # fmt: skip
_COLUMN = 44  # where descriptions begin

# of settings that lie in no group
_ROOT = (
    Described("recipe", "the recipe that a run was made from; choose it with --recipe", "", "", "text", ""),
    Described("seed", "of weights, order, views and poses", "", "[0, 4294967295]", "whole number", 0),
)


def every_setting(method: str = "mocov3") -> Iterator[Described]:
    """Every setting of every group, of one base objective and of all add-ons."""
    yield from _ROOT
    for field in dataclasses.fields(Config):
        if field.name == "method":
            yield from described(METHODS[method], "method")
        elif field.name == "addons":
            for name in ADDONS:
                yield from described(ADDONS[name], name)
        elif field.name not in ("recipe", "seed"):
            yield from described(field.default_factory, field.name)


def list_recipes() -> list[str]:
    """Rows, sizes, bases and add-ons, a line each."""
    lines = ["A recipe is ROW-SIZE, such as ser-small. Sizes:"]
    lines += [f"  {size:18} {edit.__doc__}" for size, edit in SIZES.items()]
    lines += ["", "Rows, with the linear top-1 (%) on ImageNet-1k that the paper gives; none of them was run here:"]
    lines += [f"  {name:18} {row.published or '-':>6}  {row.text}" for name, row in ROWS.items()]
    return [
        *lines,
        "",
        "Any base with any add-on is BASE+ADDON-SIZE, or at another layer BASE+ADDON@LAYER-SIZE, as dino+essl@3-tiny:",
        f"  bases    {', '.join(BASES)}",
        f"  add-ons  {', '.join(ADDITIONS)}",
    ]


def show_recipe(name: str, settings: list[str]) -> list[str]:
    """All settings of a recipe as KEY=VALUE with their descriptions: those that it changes in its parent first.

    Raises:
        UserError: no such recipe or setting.
    """
    config, above = configured(name, settings), parent(name)
    flat, known = flatten(config), {d.key: d for d in every_setting(config.method.name)}
    lines = [f"# {name}"]
    changed: dict[str, Any] = {}
    if above is not None:
        changed = {key: old for key, (old, _) in differences(recipe(above), config).items() if key != "recipe"}
        lines += ["", f"# changed against {above}:" if changed else f"# as {above}"]
        new = {key.split(".")[0] for key, old in changed.items() if old is None} & set(ADDONS)
        was = {key: "" if key.split(".")[0] in new else f"was {written(old)}; " for key, old in changed.items()}
        lines += [_line(key, flat.get(key), known.get(key), was[key]) for key in changed]
    group = ""
    for key, value in flat.items():
        if key.split(".")[0] != group and key != "seed":
            group = key.split(".")[0]
            lines += ["", f"# {group}"]
        lines.append(_line(key, value, known.get(key)))
    return lines


def most_used(name: str) -> list[str]:
    """Ten settings of a recipe, as KEY=VALUE with their descriptions."""
    flat, known = flatten(recipe(name)), {d.key: d for d in every_setting()}
    return [f"  {_line(key, flat[key], known[key])}" for key in _MOST_USED]


def _line(key: str, value: Any, setting: Described | None, before: str = "") -> str:
    head = f"{key}={written(value)}"
    return f"{head:{_COLUMN}} # {before}{about(setting) if setting else ''}".rstrip(" #;")


def about(setting: Described) -> str:
    """Its description, unit and range."""
    more = "; ".join(part for part in (setting.unit, setting.limits) if part)
    return f"{setting.text} ({more})" if more else setting.text


def written(value: Any) -> str:
    """A value as one types it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(written, value))}]" if isinstance(value, list | tuple) else str(value)
