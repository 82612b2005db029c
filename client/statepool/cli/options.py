"""Types of command-line options that several commands share."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias, TypeVar

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from statepool.units import parse_bytes, parse_seconds

_T = TypeVar("_T")


def _from_text(parse: Callable[[str], _T]) -> Callable[[Any, Sequence[Token]], _T]:
    def convert(_type: Any, tokens: Sequence[Token]) -> _T:
        return parse(tokens[0].value)

    return convert


ByteSize: TypeAlias = Annotated[int, Parameter(converter=_from_text(parse_bytes), n_tokens=1)]
"""An option that is a size: ``4GiB``; see `statepool.units.parse_bytes`."""

Seconds: TypeAlias = Annotated[float, Parameter(converter=_from_text(parse_seconds), n_tokens=1)]
"""An option that is a duration: ``10s``; see `statepool.units.parse_seconds`."""

SomeTime: TypeAlias = Annotated[Seconds, Parameter(validator=Number(gt=0))]
"""A duration that is more than 0."""
