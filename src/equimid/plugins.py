"""Registries of what can also come from outside the package: base methods and add-ons."""

import difflib
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from equimid.errors import UserError

__all__ = ["Registry"]

T = TypeVar("T", bound=type)


class Registry(Generic[T]):
    """Configuration classes by name: our own, those registered by `register`, and those of installed packages that
    name one under the entry point group `group`.

    what: the word for messages, such as "add-on"
    """

    def __init__(self, what: str, group: str) -> None:
        self.what, self.group = what, group
        self._classes: dict[str, T] = {}
        self._looked = False

    def register(self, cls: T) -> T:
        """Make a configuration class known under its `name`; also as a decorator.

        Raises:
            UserError: another class has that name.
        """
        name = cls.name  # type: ignore[attr-defined]
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
            raise UserError(f"unknown {self.what} {name!r}; {hint}There are: {', '.join(self)}")
        return self._classes[name]

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        self._look_outside()
        return iter(list(self._classes))

    def _look_outside(self) -> None:
        if self._looked:
            return
        self._looked = True
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
