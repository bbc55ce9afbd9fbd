"""How a setting is declared: its description, unit and range stand beside its default.

    @settings("train")
    class TrainConfig:
        batch_size: Annotated[int, setting("images of a step over all ranks", ge=1)] = 256

    TrainConfig(batch_size=0)    # UserError: train.batch_size is 0; it must be 1 or more

A group of settings is a frozen dataclass that pydantic checks, also in `dataclasses.replace`: unknown names, wrong
types, NaN and infinite numbers are refused. What no declaration says is checked in `__post_init__`, whose
ValueError begins with the name of the setting; the group is put before it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass, is_pydantic_dataclass
from pydantic.fields import FieldInfo

from equimid.errors import UserError

__all__ = ["Described", "described", "explain", "setting", "settings"]

T = TypeVar("T")


def setting(text: str, *, unit: str = "", **limits: Any) -> Any:
    """The description of a setting, for `Annotated`.

    Args:
        text: what it is, a phrase without a full stop at its end.
        unit: such as "pixels" or "epochs".
        limits: pydantic's gt, ge, lt, le, min_length.
    """
    return Field(description=text, json_schema_extra={"unit": unit}, **limits)


@dataclass_transform(frozen_default=True)
def settings(group: str = "") -> Callable[[type[T]], type[T]]:
    """Class decorator: a group of settings, whose mistakes are named `group.setting`.

    Raises:
        UserError: (the class, when it is called) a value is not what the declaration says.
    """

    def declare(cls: type[T]) -> type[T]:
        made: Any = dataclass(cls, frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
        construct = made.__init__

        @wraps(construct)
        def checked(self: Any, *args: Any, **values: Any) -> None:
            try:
                construct(self, *args, **values)
            except ValidationError as error:
                raise UserError(explain(error, group or getattr(made, "name", ""), made)) from None

        made.__init__ = checked
        return made  # type: ignore[no-any-return]

    return declare


def explain(error: ValidationError, group: str, kind: Any = None, where: str = "") -> str:
    """The first mistake of several, in a sentence.

    Args:
        group: that was built, such as "train".
        kind: its class, to name the whole range of a setting.
        where: the file, if it was read from one.
    """
    first = error.errors()[0]
    # of a union, pydantic names the member too, such as SERConfig or constrained-int
    loc = [str(part) for part in first["loc"] if re.fullmatch(r"[a-z_0-9]+", str(part))]
    key = ".".join([group, *loc]).strip(".")
    where = f"{where}: " if where else ""
    if first["type"] == "value_error":  # of a __post_init__, which begins with the name of the setting
        return f"{where}{key}{'.' if key else ''}{first['msg'].removeprefix('Value error, ')}"
    if first["type"] in ("missing", "missing_argument"):
        return f"{where}{key} has no value"
    if first["type"] in ("unexpected_keyword_argument", "dataclass_exact_type", "extra_forbidden"):
        return f"{where}unknown setting {key!r}"
    context, field = first.get("ctx") or {}, _field(kind, loc)
    # of a value in a list, only the limit that it breaks is known
    limits = _limits(field) if field is not None else _range(context)
    expected = _in_words(limits) if limits and context else _expected(first)
    return f"{where}{key} is {first['input']!r}; {expected}"


_BOUNDS = ("gt", "ge", "lt", "le")

_WORDS = {
    "finite_number": "it must be a finite number",
    "literal_error": "it must be one of {expected}",
    "too_short": "it must have {min_length} value(s) or more",
    "int_parsing": "it must be a whole number",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_parsing": "it must be a number",
    "float_type": "it must be a number",
    "bool_parsing": "it must be true or false",
    "bool_type": "it must be true or false",
    "tuple_type": "it must be a list",
    "dataclass_type": "it must be a group, name: value",
    "string_type": "it must be text",
}


def _expected(first: Any) -> str:
    words = _WORDS.get(first["type"])
    if words is not None:
        return words.format(**(first.get("ctx") or {}))
    message: str = first["msg"]
    return message[:1].lower() + message[1:]


def _field(kind: Any, loc: list[str]) -> FieldInfo | None:
    """The declaration that a mistake is about, where it is of the value itself and not of one in a list."""
    for name in loc:
        kind = next((k for k in (kind, *get_args(kind)) if is_pydantic_dataclass(k)), None)
        declaration = kind.__pydantic_fields__.get(name) if kind is not None else None
        if declaration is None:
            return None
        kind = declaration.annotation
    return declaration if loc else None


def _limits(field: FieldInfo) -> str:
    """Its range, such as "(0, 1]" or ">= 1"; "" where there is none."""
    return _range({name: getattr(m, name) for m in field.metadata for name in _BOUNDS if hasattr(m, name)})


def _range(bounds: Mapping[str, Any]) -> str:
    limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in bounds.items() if k in _BOUNDS}
    low, high = limits.get("gt", limits.get("ge")), limits.get("lt", limits.get("le"))
    if low is not None and high is not None:
        return f"{'(' if 'gt' in limits else '['}{low}, {high}{')' if 'lt' in limits else ']'}"
    if low is not None:
        return f"> {low}" if "gt" in limits else f">= {low}"
    if high is not None:
        return f"< {high}" if "lt" in limits else f"<= {high}"
    return ""


def _in_words(limits: str) -> str:
    sign, _, number = limits.partition(" ")
    words = {
        ">": f"greater than {number}",
        ">=": f"{number} or more",
        "<": f"less than {number}",
        "<=": f"{number} or less",
    }
    return f"it must be {words.get(sign, f'in {limits}')}"


@plain_dataclass(frozen=True)
class Described:
    """A setting as documentation shows it.

    Attributes:
        key:     dotted.
        text:    what it is.
        unit:    "" where it has none.
        limits:  its range; "" where it has none.
        kind:    its type in words.
        default: its value.
    """

    key: str
    text: str
    unit: str
    limits: str
    kind: str
    default: Any


def described(cls: Any, group: str, values: Any = None) -> Iterator[Described]:
    """Every setting of a class and of the groups in it.

    Args:
        values: an instance whose values are the defaults; by default the class's own.
    """
    hints, values = get_type_hints(cls), values or cls()
    for field in fields(cls):
        # a plain dataclass may derive from a group of settings: an add-on of somebody else's
        key, info = f"{group}.{field.name}".strip("."), cls.__pydantic_fields__.get(field.name) or FieldInfo()
        inner = next((k for k in (hints[field.name], *get_args(hints[field.name])) if is_pydantic_dataclass(k)), None)
        if inner is not None:
            yield from described(inner, key, getattr(values, field.name))
            continue
        extra: Any = info.json_schema_extra or {}
        kind, default = _kind(hints[field.name]), getattr(values, field.name)
        yield Described(key, info.description or "", str(extra.get("unit", "")), _limits(info), kind, default)


def _kind(hint: Any) -> str:
    schema = TypeAdapter(hint).json_schema()
    return _schema_kind(schema)


def _schema_kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_schema_kind(option) for option in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        if "prefixItems" in schema:
            return f"{len(schema['prefixItems'])} values"
        return f"list of {_schema_kind(schema['items'])}"
    words = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return words.get(schema.get("type", ""), "null" if schema.get("type") == "null" else "value")
