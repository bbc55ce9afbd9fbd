"""What there is to use: public names with signatures, recipes with settings, commands with options."""

import importlib
import inspect
import json
import os
import pkgutil
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from golden_runs import table
from golden_runs.process import command

__all__ = ["commands", "public_names", "recipes"]

_PLAIN = (bool, int, float, str, type(None))
# of a page of help
_TITLES = ("options", "commands", "subcommands", "positional arguments")
_NOT_LISTED = ("-h, --help", "COMMAND", "(required)")


def public_names() -> dict[str, Any]:
    """{"module.Name": [kind, signature, {member: signature}]} of equimid, of its modules and of packages at any depth,
    as far as they have an __all__."""
    package = importlib.import_module("equimid")
    modules = [package.__name__]
    modules += [
        module.name
        for module in pkgutil.walk_packages(package.__path__, "equimid.")
        if (module.ispkg or module.name.count(".") == 1) and not module.name.endswith("__main__")
    ]
    found: dict[str, Any] = {}
    for name in sorted(modules):
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            found[f"{name}.{public}"] = _described(getattr(module, public))
    return found


def recipes() -> dict[str, dict[str, str]]:
    """Every row and every base with every add-on, in every size: its settings as JSON."""
    combined = [
        f"{base}+{addon}{at}-{size}"
        for base in table.call("bases")
        for addon in table.call("add-ons")
        for at in ("", "@3")
        for size in table.call("sizes")
    ]
    found = {}
    for name in [*table.call("recipe names")(), *combined]:
        settings = table.call("flatten")(table.call("configured")(name, []))
        found[name] = {key: json.dumps(value) for key, value in settings.items()}
    return found


def commands() -> dict[str, list[str]]:
    """{command: its positional arguments, options and commands of its own}, as --help lists them."""
    os.environ["COLUMNS"] = "300"
    found: dict[str, list[str]] = {}
    waiting = [""]
    while waiting:
        name = waiting.pop(0)
        listed = _options(command([*name.split(), "--help"]))
        found[name or "equimid"] = listed
        if name.count(" ") == 0:  # commands of commands have none
            waiting += [f"{name} {word}".strip() for word in listed if re.fullmatch("[a-z][a-z-]*", word)]
    return found


def _options(printed: str) -> list[str]:
    """Of a page of help, as argparse or tyro prints it: arguments, options and commands with their defaults; no text
    that explains them."""
    found: list[list[str]] = []
    inside = False
    for line in printed.splitlines():
        text = line.strip("╭╮╰╯│─ ").rstrip(":")
        if text in _TITLES:
            inside = True
        elif line[:1] not in (" ", "│", "╭", "╰", ""):
            inside = False  # a paragraph, or a list of other things
        # what is listed begins at the left, what is said of it further to the right
        elif inside and (listed := re.match(r"[│ ] {1,3}(?:[•*-] )?(\S+(?: \S+)*)(  .*)?$", line.rstrip("│ "))):
            found.append([listed[1], listed[2] or ""])
        elif found:
            found[-1][1] += f" {text}"
    defaults = [re.search(r"\((default: [^()]*|required)\)", text) for _, text in found]
    named = zip((name for name, _ in found), defaults, strict=True)
    return [name + (f" ({told[1]})" if told else "") for name, told in named if name not in _NOT_LISTED]


def _described(found: Any) -> list[Any]:
    if inspect.isclass(found):
        members = {
            name: _signature(getattr(found, name))
            for name, member in vars(found).items()
            if not name.startswith("_") and callable(getattr(found, name, None))
        }
        others = sorted(
            name for name, member in vars(found).items() if not name.startswith("_") and name not in members
        )
        return ["class", _signature(found), members | dict.fromkeys(others, "attribute")]
    if callable(found):
        return ["function", _signature(found)]
    if isinstance(found, Mapping):
        return ["mapping", ", ".join(map(str, found))]
    return [type(found).__name__, _shown(found)]


def _signature(found: Any) -> str:
    """Without the modules that its types lie in, which may move."""
    try:
        try:
            signature = inspect.signature(found, eval_str=True)
        except NameError:  # a type that is imported for type checkers alone
            signature = inspect.signature(found)
    except (TypeError, ValueError):
        return "no signature"
    parameters = [
        p.replace(default=_Default(p.default), annotation=_bare(p.annotation)) for p in signature.parameters.values()
    ]
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", str(signature.replace(parameters=parameters)))


def _bare(annotation: Any) -> Any:
    """A type without what is said of it beside, such as its range."""
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


class _Default:
    """Of a parameter, as it is shown in a signature."""

    def __new__(cls, value: Any) -> Any:
        return value if value is inspect.Parameter.empty else super().__new__(cls)

    def __init__(self, value: Any) -> None:
        self.text = _shown(value)

    def __repr__(self) -> str:
        return self.text


def _shown(value: Any) -> str:
    """Plain values as they are, of others the type alone: a default may be as large, and as private, as os.environ."""
    if isinstance(value, frozenset | set):
        return str(sorted(value))
    if isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value):
        return str(value)
    return repr(value) if isinstance(value, _PLAIN) else f"<{type(value).__name__}>"
