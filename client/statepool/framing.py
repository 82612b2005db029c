"""Frames of the attach socket: each message after its length, an unsigned 32-bit number, little-endian."""

from collections.abc import Iterator
from struct import Struct

from google.protobuf.message import Message

MAX_FRAME_BYTES = 4096
"""Longest message."""

_LENGTH = Struct("<I")


def frame(message: Message) -> bytes:
    """Writes a message with its length."""
    data = message.SerializeToString()
    return _LENGTH.pack(len(data)) + data


class FrameReader:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes bytes as they come.

        Yields:
            The bytes of each message that is complete.

        Raises:
            ValueError: A length beyond `MAX_FRAME_BYTES`.
        """
        self._rest += data
        while len(self._rest) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"a frame of {length} bytes, more than {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._rest) < end:
                return
            message, self._rest = self._rest[_LENGTH.size : end], self._rest[end:]
            yield message
