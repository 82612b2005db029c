"""Guarantee: sizes and durations are read exactly, or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.units import format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("7B", 7),
        ("512MB", 512_000_000),
        ("4GiB", 4 * 2**30),
        ("1.5GiB", 3 * 2**29),
        (" 2 KiB ", 2048),
        ("0.3KB", 300),
        ("1.0005KB", 1000),
        ("8388607TiB", 8388607 * 2**40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    """A number with a unit is that many bytes, exactly; a fraction of a byte is dropped."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "+1", "1e3", "1.5", "1,5GiB", "4Gib", "4 G", "nan", "inf", "٣", "8388608TiB", "9" * 5000]
)
def test_bad_sizes_are_refused(text: str) -> None:
    """Anything that is not plainly a size is an error."""
    with pytest.raises(ValueError, match=r"^size "):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("500ms", 0.5), ("250us", 0.00025), ("2m", 120.0), ("1h", 3600.0), ("1.5", 1.5), ("0.1s", 0.1)],
)
def test_durations(text: str, seconds: float) -> None:
    """A number with a unit is the nearest float of seconds."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1s", "1M", "1min", "1m30s", "nan", "inf", "1e3", "1_000"])
def test_bad_durations_are_refused(text: str) -> None:
    """Anything that is not plainly a duration is an error."""
    with pytest.raises(ValueError, match=r"^duration "):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0B"), (1023, "1023B"), (1024, "1KiB"), (1536, "1.5KiB"), (5 * 2**40, "5TiB")]
)
def test_written_sizes(size: int, text: str) -> None:
    """A size is written in the largest unit that it fills."""
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0us"), (0.00025, "250us"), (0.0015, "1.5ms"), (1.5, "1.5s"), (90.0, "1.5m")]
)
def test_written_durations(seconds: float, text: str) -> None:
    """A duration is written in the largest unit that it fills."""
    assert format_seconds(seconds) == text


@given(st.integers(0, 2**62))
def test_a_written_size_reads_back_nearly(size: int) -> None:
    """What is written can be read, and is right to two decimals of its unit."""
    error = abs(parse_bytes(format_bytes(size)) - size)

    assert error <= 0.005 * size + 1  # half of the last decimal, and the fraction of a byte that reading drops


@given(st.floats(1e-6, 1e6))
def test_a_written_duration_reads_back_nearly(seconds: float) -> None:
    """What is written can be read, and is right to two decimals of its unit."""
    assert parse_seconds(format_seconds(seconds)) == pytest.approx(seconds, rel=0.005)
