"""Types of command-line options that several commands share."""

import re
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


def split_list(text: str) -> list[str]:
    """Splits a list as it is written in one word: by commas, white space, or both."""
    return [item for item in re.split(r"[,\s]+", text) if item]


def _split_variable(_type: Any, value: str, *, delimiter: str | None = None) -> list[str]:  # noqa: ARG001 — is given
    return split_list(value)


ByteSize: TypeAlias = Annotated[int, Parameter(converter=_from_text(parse_bytes), n_tokens=1)]
"""An option that is a size: ``4GiB``; see `statepool.units.parse_bytes`."""

Seconds: TypeAlias = Annotated[float, Parameter(converter=_from_text(parse_seconds), n_tokens=1)]
"""An option that is a duration: ``10s``; see `statepool.units.parse_seconds`."""

SomeTime: TypeAlias = Annotated[Seconds, Parameter(validator=Number(gt=0))]
"""A duration that is more than 0."""

SomeBytes: TypeAlias = Annotated[ByteSize, Parameter(validator=Number(gt=0))]
"""A size that is more than 0."""

Addresses: TypeAlias = Annotated[list[str], Parameter(negative=(), env_var_split=_split_variable)]
"""An option that may be repeated; in a variable, its values are separated as `split_list` has them."""
