"""Messages to checked values and back: the one place that decides whether a request is well formed."""

import time
from collections.abc import Container, Sequence

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from statepool.errors import BadFieldError, BatchTooLargeError, ColumnLengthMismatchError, IncarnationMismatchError
from statepool.refs import BlockRefs
from statepool.v1 import types_pb2
from statepool.wire import refs_from_wire
from statepool_server.limits import Limits

MAX_NAMESPACE_BYTES = 256
"""Longest namespace and owner key, in bytes of UTF-8."""
MAX_HASH_BYTES = 64
"""Longest prefix hash."""


class Convert:
    """Turns request fields into domain values; every method raises an `InvalidArgumentError` that names the field."""

    def __init__(self, limits: Limits, incarnation: int) -> None:
        self._limits = limits
        self.incarnation = incarnation

    def session(self, ref: types_pb2.SessionRef, continued: Container[int] = ()) -> tuple[int, int]:
        """Reads who calls.

        Args:
            ref: Who says so.
            continued: Former server processes whose refs are as good as those of this one.

        Returns:
            Session id and epoch.

        Raises:
            IncarnationMismatchError: The caller knows another server process.
        """
        if ref.incarnation != self.incarnation and ref.incarnation not in continued:
            raise IncarnationMismatchError(
                f"the request is for incarnation {ref.incarnation:#x}, this is {self.incarnation:#x}",
                field="session.incarnation",
                incarnation=self.incarnation,
            )
        return ref.session_id, ref.epoch

    def refs(self, message: types_pb2.BlockRefs, field: str) -> BlockRefs:
        """Reads block refs."""
        self.batch(len(message.block_ids), field)
        if len(message.block_ids) != len(message.generations):
            raise ColumnLengthMismatchError(
                f"{field}: {len(message.block_ids)} block_ids, {len(message.generations)} generations", field=field
            )
        return refs_from_wire(message)

    def batch(self, rows: int, field: str) -> None:
        """Checks the number of rows."""
        if rows > self._limits.max_batch:
            raise BatchTooLargeError(
                f"{field} has {rows} rows, more than {self._limits.max_batch}",
                field=field,
                limit=self._limits.max_batch,
            )

    def column(self, values: Sequence[int], rows: int, field: str, default: int | None = None) -> NDArray[np.int64]:
        """Reads a column of integers.

        Args:
            values: The field.
            rows: Rows that the request has.
            field: Its name.
            default: What every row gets when the column is empty; None: an empty column is of the wrong length.

        Returns:
            ``[rows]``; a column of length 1 is repeated. Values above 2**63 - 1 become -1, which no check accepts.
        """
        if not values and default is not None:
            return np.full(rows, default, np.int64)
        if len(values) not in (1, rows):
            raise ColumnLengthMismatchError(f"{field} has {len(values)} values for {rows} rows", field=field)
        read = np.fromiter(values, np.uint64, len(values))
        column = np.where(read > np.uint64(2**63 - 1), -1, read.astype(np.int64))
        return np.broadcast_to(column, rows) if len(values) != rows else column

    def hashes(self, values: Sequence[bytes], field: str) -> list[bytes]:
        """Reads prefix hashes; their number is the caller's to check."""
        hashes = list(values)
        if not all(0 < len(value) <= MAX_HASH_BYTES for value in hashes):
            row = next(row for row, value in enumerate(hashes) if not 0 < len(value) <= MAX_HASH_BYTES)
            raise BadFieldError(f"{field}[{row}] has {len(hashes[row])} bytes, not 1 to {MAX_HASH_BYTES}", field=field)
        return hashes

    def name(self, value: str, field: str) -> str:
        """Reads a namespace or an owner key."""
        if len(value.encode()) > MAX_NAMESPACE_BYTES:
            raise BadFieldError(f"{field} is longer than {MAX_NAMESPACE_BYTES} bytes", field=field)
        return value

    def ttl_ns(self, ttl: Duration) -> int:
        """Reads a time to live, in nanoseconds."""
        nanoseconds = duration_ns(ttl, "ttl")
        low, high = self._limits.min_ttl_ms, self._limits.max_ttl_ms
        if not low * 1_000_000 <= nanoseconds <= high * 1_000_000:
            raise BadFieldError(f"ttl is {nanoseconds / 1e9:g} s, not {low} to {high} ms", field="ttl")
        return nanoseconds

    def page(self, page_size: int, page_token: str) -> tuple[int, int]:
        """Reads a page request.

        Returns:
            The number in the token (0: the first page), and the most rows.
        """
        return self._after(page_token), min(page_size or self._limits.max_batch, self._limits.max_batch)

    def page_token(self, number: int) -> str:
        """Writes the token of a page that a number tells where to begin."""
        return f"{self.incarnation:x}.{number}"

    def _after(self, token: str) -> int:
        if not token:
            return 0
        incarnation, _, number = token.partition(".")
        known = incarnation == f"{self.incarnation:x}"
        if not known or not (number.isascii() and number.isdecimal()) or len(number) > 19 or int(number) >= 2**63:
            raise BadFieldError("page_token was not made by this server process", field="page_token")
        return int(number)


def duration_ns(value: Duration, field: str) -> int:
    """Reads a duration that must not be negative, in nanoseconds."""
    if not (0 <= value.seconds <= 2**31 and 0 <= value.nanos < 10**9):
        raise BadFieldError(f"{field}: {value.seconds} s and {value.nanos} ns is no duration from 0 on", field=field)
    return value.seconds * 10**9 + value.nanos


def duration(nanoseconds: int) -> Duration:
    """Writes a duration."""
    return Duration(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)


def wall_clock(monotonic_ns: int) -> Timestamp:
    """Writes a time of the monotonic clock, as the wall clock shows it now."""
    return timestamp(time.time_ns() + monotonic_ns - time.monotonic_ns())


def timestamp(nanoseconds: int) -> Timestamp:
    """Writes a time, given in nanoseconds since the Unix epoch."""
    return Timestamp(seconds=nanoseconds // 10**9, nanos=nanoseconds % 10**9)
