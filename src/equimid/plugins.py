"""Registries of what can also come from outside the package: base methods and add-ons."""

import difflib
import re
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from equimid.errors import UserError

__all__ = ["Registry"]

T = TypeVar("T", bound=type)

_NAME = re.compile(r"^[a-z_][a-z0-9_]*$")


class Registry(Generic[T]):
    """Configuration classes by name: our own, those registered by `register`, and those of installed packages that
    name one under the entry point group `group`.

    Args:
        what:     the word for messages, such as "add-on"
        base:     what every class derives from
        reserved: names that it cannot have
    """

    def __init__(self, what: str, group: str, base: T, reserved: Collection[str] = ()) -> None:
        self.what, self.group, self.base, self.reserved = what, group, base, reserved
        self._classes: dict[str, T] = {}
        self._looked = False

    def register(self, cls: T) -> T:
        """Make a configuration class known under its `name`; also as a decorator.

        Raises:
            UserError: another class has that name.
        """
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not _NAME.match(name) or name in self.reserved:
            raise UserError(
                f"the {self.what} {cls.__module__}.{cls.__qualname__} has the name {name!r}; expected a class "
                "attribute `name` of small letters, digits and _, which is no group of settings already"
            )
        if not issubclass(cls, self.base):
            raise UserError(f"the {self.what} {cls.__qualname__} must derive from {self.base.__qualname__}")
        # a class inherits that its base is one, and its own settings would be none
        if "__dataclass_params__" not in vars(cls):
            raise UserError(f"the {self.what} {cls.__qualname__} is no dataclass; put @dataclass(frozen=True) above it")
        known = self._classes.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(f"two classes want to be the {self.what} {name!r}: {known!r} and {cls!r}; rename one")
        self._classes[name] = cls
        return cls

    def __getitem__(self, name: str) -> T:
        """
        Raises:
            UserError: there is none of that name; the nearest is told.
        """
        if name not in self:
            near = difflib.get_close_matches(name, self, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"unknown {self.what} {name!r}; {hint}Installed here: {', '.join(self)}")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        self._look_outside()
        return iter(list(self._classes))

    def _look_outside(self) -> None:
        if self._looked:
            return
        for point in entry_points(group=self.group):
            try:
                self.register(point.load())
            except UserError:
                raise
            except Exception as error:
                raise UserError(
                    f"the {self.what} {point.name!r} of another package ({point.value}) cannot be loaded: {error!r}; "
                    "mend or uninstall that package"
                ) from error
        self._looked = True
