"""Checks that the methods' configurations share."""

import math
from collections.abc import Callable

from equimid.errors import UserError
from equimid.methods.base import MethodConfig

__all__ = ["fraction", "not_negative", "positive"]


def positive(config: MethodConfig, *fields: str) -> None:
    """
    Raises:
        UserError: one of these fields is not a finite number above 0.
    """
    _check(config, fields, lambda value: 0 < value < math.inf, "be positive")


def not_negative(config: MethodConfig, *fields: str) -> None:
    """
    Raises:
        UserError: one of these fields is not a finite number of 0 or more.
    """
    _check(config, fields, lambda value: 0 <= value < math.inf, "be 0 or more")


def fraction(config: MethodConfig, *fields: str) -> None:
    """
    Raises:
        UserError: one of these fields is not in 0..1.
    """
    _check(config, fields, lambda value: 0 <= value <= 1, "lie in 0..1")


def _check(config: MethodConfig, fields: tuple[str, ...], good: Callable[[float], bool], expected: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if not good(value):
            raise UserError(f"method.{field} is {value}; it must {expected}")
