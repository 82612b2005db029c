"""Variable-length integers, as messages have their tags and lengths."""

from google.protobuf.message import DecodeError

_MOST_BITS = 64


def varint(value: int) -> bytes:
    """Writes a number that is not negative."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Reads a number.

    Returns:
        It, and the place behind it.

    Raises:
        IndexError: The bytes end before it does.
        DecodeError: It is longer than any number of 64 bits.
    """
    value = shift = 0
    while data[position] & 0x80:
        if shift + 7 >= _MOST_BITS:
            raise DecodeError("a number is longer than ten bytes")
        value |= (data[position] & 0x7F) << shift
        position, shift = position + 1, shift + 7
    return value | data[position] << shift, position + 1
