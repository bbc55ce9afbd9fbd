"""The configuration of a run: nested frozen dataclasses, each beside what it builds; this is their root.

Settings are named by dotted keys (`ser.weight`); every add-on is a group of its own name. Unknown keys and values of a
wrong type are errors, and so are parts that do not go together.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from equimid.addons import ADDONS, AddonConfig, plan_views
from equimid.backbones import BackboneConfig
from equimid.data import DataConfig
from equimid.engine import OptimConfig, RuntimeConfig, TrainConfig
from equimid.errors import UserError
from equimid.evaluation import EvaluationConfig
from equimid.files import write_text
from equimid.methods import METHODS, MethodConfig, MoCoV3Config
from equimid.settings import explain
from equimid.views import ViewPlan, ViewsConfig

__all__ = ["Config", "differences", "flatten", "load_config", "override", "save_config"]


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        recipe: the name of the recipe that it was made from
        seed:   of weights, order, views and poses
        addons: by name; in settings and files each is a group of its own, `ser=null` leaves it out

    Raises:
        UserError: method, add-ons, views and batch do not go together.
    """

    recipe: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    method: MethodConfig = field(default_factory=MoCoV3Config)
    addons: Mapping[str, AddonConfig] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie in 0..{2**32 - 1}")
        self.train.check_unit(self.plan().unit)

    def plan(self) -> ViewPlan:
        """All views of a micro-batch."""
        return plan_views(self.views, self.backbone, self.addons, self.train.micro_batch)


# What may differ when a run is resumed. The data are compared by their content, so a folder may have moved.
_FREE = ("runtime.", "evaluation.", "data.source", "data.tolerated_unreadable")

# What runs did that were saved before there was such a setting, where its default is another.
_BEFORE = {("ser", "grids"): 0}

# {dotted key of an older version: its name in the same group now}
_RENAMED = {"ser.share": "fraction", "evaluation.equivariance.readback_layers": "probe_layers"}

# what other programs call the last part of a key
_ELSEWHERE = {
    "learning_rate": "lr", "num_workers": "workers", "img_size": "image_size", "wd": "weight_decay", "gpus": "devices",
    "num_epochs": "epochs", "max_epochs": "epochs",
}  # fmt: skip

# settings of an older version that nothing reads any more
_REMOVED = (("equimod", "constants"),)


def flatten(config: Config) -> dict[str, Any]:
    """{dotted key: value}."""
    return dict(_leaves(_plain(config)))


def override(config: Config, assignments: Sequence[str], starting: Mapping[str, AddonConfig] | None = None) -> Config:
    """The configuration with `key=value` assignments applied; values are YAML, lists also `3,6`.

    A setting of an add-on that is not in the configuration adds it; `method.name` changes the method to another's
    defaults.

    Args:
        starting: by name, what an add-on that is added starts from; by default its own defaults.

    Raises:
        UserError: not an assignment, an unknown key (the nearest one is named), a value of a wrong type, or parts that
            do not go together.
    """
    content = _plain(config)
    # the method first: it decides which settings it has
    for assignment in sorted(assignments, key=lambda a: not a.startswith("method.name=")):
        key, equals, text = assignment.partition("=")
        if not equals:
            raise UserError(f"{assignment!r} is not a setting; write key=value, such as ser.weight=0.3")
        if key == "recipe":
            raise UserError(f"{assignment!r} only names the recipe; choose one with --recipe {text}")
        if key == "method.name" and text != content["method"]["name"]:
            content["method"] = _plain(METHODS[text]())
            continue
        kind = _kind(key, _kinds(_parts(content)), content)
        *parents, last = key.split(".")
        place = content
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = _plain(starting[parent]) if starting and parent in starting else {}
            place = place[parent]
        place[last] = _value(key, text, kind)
    return _build(content, "")


def save_config(config: Config, file: Path) -> None:
    """Write it as YAML, resolved."""
    # an add-on that is left out is not named: it may be another machine's plugin
    content = {key: value for key, value in _plain(config).items() if value is not None}
    write_text(file, yaml.safe_dump(content, sort_keys=False))


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
    for key, new in _RENAMED.items():
        *groups, old = key.split(".")
        group: Any = content
        for name in groups:
            group = group.get(name) if isinstance(group, dict) else None
        if isinstance(group, dict) and old in group:
            group[new] = group.pop(old)
    for group, name in _REMOVED:
        if isinstance(content.get(group), dict):
            content[group].pop(name, None)
    kinds = _kinds(_parts(content))
    for key, _ in _leaves(content):
        _kind(key, kinds, content, str(file))
    for (group, name), value in _BEFORE.items():
        if isinstance(content.get(group), dict):
            content[group].setdefault(name, value)
    return _build(content, str(file))


def differences(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that change what is trained and differ: {key: (before, after)}."""
    old, new = flatten(before), flatten(after)
    keys = [key for key in [*old, *new] if not key.startswith(_FREE)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def _plain(config: Any) -> dict[str, Any]:
    """Nested plain values; every known add-on is a group, or None where it is left out."""

    def listed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: listed(inner) for key, inner in value.items()}
        return [listed(inner) for inner in value] if isinstance(value, tuple | list) else value

    plain: dict[str, Any] = {}
    for key, value in dataclasses.asdict(config).items():
        if isinstance(config, Config) and key == "addons":
            plain |= {name: listed(value.get(name)) for name in [*ADDONS, *value]}
        else:
            plain[key] = listed(value)
    return plain


def _leaves(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in content.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return leaves


def _kinds(parts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted key: type} of every setting in these parts, groups included."""
    kinds: dict[str, Any] = {}
    for name, kind in parts.items():
        if get_origin(kind) is ClassVar:
            continue
        kinds[prefix + name] = kind
        for option in [kind, *get_args(kind)]:
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                kinds |= _kinds(get_type_hints(option), f"{prefix}{name}.")
    return kinds


def _parts(content: Mapping[str, Any]) -> dict[str, Any]:
    """{group or setting: type} of the root, with the settings of the content's method and of every known add-on."""
    method = content.get("method")
    name = str(method.get("name", MoCoV3Config.name)) if isinstance(method, dict) else MoCoV3Config.name
    parts = {name: kind for name, kind in get_type_hints(Config).items() if name != "addons"}
    return parts | {"method": METHODS[name]} | {name: ADDONS[name] | None for name in ADDONS}


def _kind(key: str, kinds: Mapping[str, Any], content: Mapping[str, Any], where: str = "") -> Any:
    if key in kinds:
        return kinds[key]
    if where and key.split(".")[0] not in kinds:
        raise UserError(f"{where}: unknown setting {key!r}; is it of an add-on whose package is not installed here?")
    if key in _RENAMED:
        raise UserError(f"{key} is called {key.rpartition('.')[0]}.{_RENAMED[key]} now")
    method = [kind.removeprefix("method.") for kind in kinds if kind.startswith("method.")]
    if key.startswith("method."):
        given = content.get("method")
        name = given.get("name", MoCoV3Config.name) if isinstance(given, dict) else MoCoV3Config.name
        raise UserError(
            f"{where + ': ' if where else ''}unknown setting {key!r}; the method {name} has {', '.join(method)}"
        )
    # what this run has comes before what it could have
    known = sorted(kinds, key=lambda known: content.get(known.split(".")[0]) is None)
    key_here = ".".join(_ELSEWHERE.get(part, part) for part in key.split("."))
    same = [name for name in known if name.split(".")[-1] == key_here.split(".")[-1]]
    if "." in key:
        near = difflib.get_close_matches(key_here, known, n=1, cutoff=0.6) + same
    else:
        last = {name.split(".")[-1]: name for name in reversed(known)}
        near = same + [last[name] for name in difflib.get_close_matches(key, last, n=1, cutoff=0.7)]
    hint = f"did you mean {near[0]!r}?" if near else "'equimid recipes show NAME' lists all settings"
    raise UserError(f"{where + ': ' if where else ''}unknown setting {key!r}; {hint}")


def _value(key: str, text: str, kind: Any) -> Any:
    options = [kind, *get_args(kind)]
    if text.lower() in ("none", "null") and NoneType in options:
        return None
    if kind is str:
        return text
    if not text or any(dataclasses.is_dataclass(option) for option in options):
        wrong = f"{key} is a group of settings" if text else f"{key}= has no value"
        raise UserError(f"{wrong}; set one at a time, such as ser.weight=0.3, or ser=null to leave SER out")
    try:
        value = yaml.safe_load(f"[{text}]" if "," in text and not text.startswith("[") else text)
    except yaml.YAMLError:
        return text
    wants_list = any(get_origin(option) is tuple for option in options)
    return [value] if wants_list and not isinstance(value, list) else value


def _build(content: dict[str, Any], where: str) -> Config:
    parts: dict[str, Any] = {}
    for name, kind in _parts(content).items():
        if name in content:
            parts[name] = _validated(kind, content[name], where, name)
    addons = {name: value for name in ADDONS if (value := parts.pop(name, None)) is not None}
    return Config(**parts, addons=addons)


def _validated(kind: Any, value: Any, where: str, name: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(explain(error, name, kind, where)) from None
