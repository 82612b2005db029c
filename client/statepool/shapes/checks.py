"""Checks of the calculator's arguments: integers of a sane size, named in the message when they are not."""

import functools
import inspect
import operator
from collections.abc import Callable
from typing import ParamSpec, TypeVar

MAX_PARAMETER = 2**30
"""Largest parameter; keeps every dimension of a result (at worst two products of two parameters) below 2**63."""

_AT_LEAST_ONE = frozenset({"tp_size", "tp_world_size", "conv_kernel", "conv_kernel_size"})
_P = ParamSpec("_P")
_R = TypeVar("_R")


def checked(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wraps a class method so that it gets its integer arguments checked, and as Python integers.

    An argument whose default is None may be None; ``conv_layout`` is left to the method.

    Raises:
        ValueError: From the wrapped method: an argument is no integer or out of range.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            optional = value is None and signature.parameters[name].default is None
            if name not in {"cls", "conv_layout"} and not optional:
                bound.arguments[name] = check_parameter(name, value)
        return method(*bound.args, **bound.kwargs)

    return call


def check_parameter(name: str, value: object) -> int:
    """Checks one parameter and gives it as a Python integer.

    Raises:
        ValueError: No integer, below 0 (1 for sizes of tensor-parallel groups and kernels), or above `MAX_PARAMETER`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        # Not only a check: a numpy integer becomes a Python one, whose products cannot wrap around.
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}: must be an integer, got {value!r}") from None
    least = 1 if name in _AT_LEAST_ONE else 0
    if not least <= number <= MAX_PARAMETER:
        # A number of thousands of digits cannot be printed, and nobody wants to read it.
        got = f", got {number}" if abs(number) < 2**64 else ""
        raise ValueError(f"{name}: must be from {least} to {MAX_PARAMETER}{got}")
    return number
