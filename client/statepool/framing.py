"""Frames of the attach socket: each message after its length, an unsigned 32-bit number, little-endian."""

from collections.abc import Iterator
from struct import Struct

from google.protobuf.message import Message

MAX_FRAME_BYTES = 4096
"""Longest message of a process."""
MAX_SERVER_FRAME_BYTES = 2**24
"""Longest message of a server: `Attached` lists its sessions."""

_LENGTH = Struct("<I")


def frame(message: Message) -> bytes:
    """Writes a message with its length."""
    data = message.SerializeToString()
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        """Begins without any.

        Args:
            limit: Longest message in bytes.
        """
        self._limit = limit
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes bytes as they come.

        Yields:
            The bytes of each message that is complete.

        Raises:
            ValueError: A length beyond the limit.
        """
        self._rest += data
        while len(self._rest) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest)
            if length > self._limit:
                raise ValueError(f"a frame of {length} bytes, more than {self._limit}")
            end = _LENGTH.size + length
            if len(self._rest) < end:
                return
            message = bytes(self._rest[_LENGTH.size : end])
            del self._rest[:end]
            yield message
