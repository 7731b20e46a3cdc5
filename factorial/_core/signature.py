"""Checks of functions that users pass."""

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["can_take"]


def can_take(function: object, *arguments: Any, **named: Any) -> bool:
    """Whether `function` accepts these arguments. True if its signature is unknown, as that of some builtins is."""
    if not callable(function):
        return False
    checked: Callable[..., Any] = function
    try:
        signature = inspect.signature(checked)
    except (ValueError, NameError):
        return True
    try:
        signature.bind(*arguments, **named)
    except TypeError:
        return False
    return True
