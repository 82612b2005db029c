"""Sizes and durations as people write them on a command line or in a configuration file."""

import re
from collections.abc import Mapping
from fractions import Fraction

_NUMBER_AND_UNIT = re.compile(r"\s*([0-9]{1,20}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*")

_BYTES: Mapping[str, int] = {"B": 1} | {
    prefix + ending: base**power
    for ending, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT", start=1)
}
_SECONDS: Mapping[str, Fraction] = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "m": Fraction(60),
    "h": Fraction(3600),
}
_MAX_BYTES = 2**63 - 1


def parse_bytes(text: str) -> int:
    """Reads a size such as ``4GiB``, ``512MB``, ``1.5GiB`` or ``1024``.

    Args:
        text: A decimal number and B, KB … TB (powers of 1000) or KiB … TiB (powers of 1024), exactly so written. No
            unit means bytes.

    Returns:
        Bytes; a fraction of a byte is dropped.

    Raises:
        ValueError: Anything else, a fraction without a unit, or a size that does not fit 63 bits.
    """
    number, unit = _split(text, "size", _BYTES)
    if not unit and number.denominator != 1:
        raise ValueError(f"size {text!r}: a fraction needs a unit, one of {', '.join(_BYTES)}")
    size = int(number * _BYTES[unit or "B"])
    if size > _MAX_BYTES:
        raise ValueError(f"size {text!r}: more than {_MAX_BYTES} bytes")
    return size


def parse_seconds(text: str) -> float:
    """Reads a duration such as ``10s``, ``500ms``, ``2m``, ``1h`` or ``1.5``.

    Args:
        text: A decimal number and us, ms, s, m or h. No unit means seconds.

    Returns:
        Seconds.

    Raises:
        ValueError: Anything else.
    """
    number, unit = _split(text, "duration", _SECONDS)
    return float(number * _SECONDS[unit or "s"])


def format_bytes(size: int) -> str:
    """Writes a size for people, in the largest binary unit that it fills and rounded to two decimals: ``1.5GiB``."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size >= _BYTES[unit]:
            return f"{_trim(size / _BYTES[unit])}{unit}"
    return f"{size}B"


def format_seconds(seconds: float) -> str:
    """Writes a duration for people, in h, m, s, ms or us and rounded to two decimals: ``1.5ms``."""
    for unit in ("h", "m", "s", "ms"):
        if seconds >= _SECONDS[unit]:
            return f"{_trim(seconds / float(_SECONDS[unit]))}{unit}"
    return f"{_trim(seconds / float(_SECONDS['us']))}us"


def _split(text: str, what: str, units: Mapping[str, object]) -> tuple[Fraction, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or (match[2] and match[2] not in units):
        raise ValueError(f"{what} {text[:64]!r}: must be a number and one of {', '.join(units)}")
    return Fraction(match[1]), match[2]


def _trim(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
