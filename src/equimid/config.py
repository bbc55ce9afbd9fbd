"""The configuration of a run: nested frozen dataclasses, each beside what it builds; this is their root.

Settings are named by dotted keys (`ser.weight`). Unknown keys and values of a wrong type are errors.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from equimid.addons import SERConfig
from equimid.backbones import BackboneConfig
from equimid.data import DataConfig
from equimid.engine import RuntimeConfig, TrainConfig
from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig
from equimid.methods import MoCoV3Config
from equimid.optim import OptimConfig
from equimid.views import ViewsConfig

__all__ = ["Config", "differences", "flatten", "load_config", "override", "save_config"]


@dataclass(frozen=True)
class Config:
    """
    recipe: the name of the recipe that it was made from
    seed:   of weights, order, views and poses
    ser:    null trains the base method alone
    """

    recipe: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    method: MoCoV3Config = field(default_factory=MoCoV3Config)
    ser: SERConfig | None = field(default_factory=SERConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


# What may differ when a run goes on. The data are compared by their content, so a folder may have moved.
_FREE = ("runtime.", "evaluation.", "data.")


def flatten(config: Config) -> dict[str, Any]:
    """{dotted key: value}."""
    return dict(_leaves(_plain(config)))


def override(config: Config, assignments: Sequence[str]) -> Config:
    """The configuration with `key=value` assignments applied; values are YAML, lists also `3,6`.

    Raises:
        UserError: not an assignment, an unknown key (the nearest one is named), or a value of a wrong type.
    """
    content = _plain(config)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"{assignment!r} is not a setting; write key=value, such as ser.weight=0.3")
        if key == "recipe":
            raise UserError(f"{assignment!r} only names the recipe; choose one with --recipe {text}")
        kind = _kind(key)
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            if place[parent] is None:
                place[parent] = {}
            place = place[parent]
        place[last] = _value(text, kind)
    return _build(content, "the settings")


def save_config(config: Config, file: Path) -> None:
    """Write it as YAML, resolved; beside its place and renamed."""
    beside = file.with_name(f".{file.name}.tmp")
    beside.write_text(yaml.safe_dump(_plain(config), sort_keys=False))
    os.replace(beside, file)


def load_config(file: Path) -> Config:
    """Read what `save_config` wrote.

    Raises:
        UserError: it is not a configuration.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file.parent} is not a run's folder: it has no config.yaml") from None
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} does not hold settings")
    for key, _ in _leaves(content):
        _kind(key, str(file))
    return _build(content, str(file))


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that change what is trained and differ: {key: (before, after)}."""
    old, new = flatten(before), flatten(after)
    keys = [key for key in [*old, *new] if not key.startswith(_FREE)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _plain(config: Any) -> dict[str, Any]:
    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(inner) for key, inner in value.items()}
        return [listed(inner) for inner in value] if isinstance(value, tuple | list) else value

    plain: dict[str, Any] = listed(dataclasses.asdict(config))
    return plain


def _leaves(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in content.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return leaves


def _kinds(part: type, prefix: str = "") -> dict[str, Any]:
    """{dotted key: type} of every setting, groups included."""
    kinds: dict[str, Any] = {}
    for name, kind in get_type_hints(part).items():
        kinds[prefix + name] = kind
        for option in [kind, *get_args(kind)]:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                kinds |= _kinds(option, f"{prefix}{name}.")
    return kinds


def _kind(key: str, where: str = "") -> Any:
    kinds = _kinds(Config)
    if key in kinds:
        return kinds[key]
    near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5) or [
        known for known in kinds if known.split(".")[-1] == key.split(".")[-1]
    ]
    hint = f"did you mean {near[0]!r}?" if near else "'equimid recipes NAME' lists all settings"
    raise UserError(f"{where + ': ' if where else ''}unknown setting {key!r}; {hint}")


def _value(text: str, kind: Any) -> Any:
    options = [kind, *get_args(kind)]
    if text.lower() in ("none", "null") and NoneType in options:
        return None
    if kind is str:
        return text
    try:
        value = yaml.safe_load(f"[{text}]" if "," in text and not text.startswith("[") else text)
    except yaml.YAMLError:
        return text
    wants_list = any(get_origin(option) is tuple for option in options)
    return [value] if wants_list and not isinstance(value, list) else value


def _build(content: dict[str, Any], where: str) -> Config:
    try:
        return TypeAdapter(Config).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise UserError(first["msg"].removeprefix("Value error, ")) from None
        key = ".".join(str(part) for part in first["loc"] if not str(part).endswith("Config"))
        raise UserError(f"{where}: {key} is {first['input']!r}; {first['msg'][:1].lower()}{first['msg'][1:]}") from None
