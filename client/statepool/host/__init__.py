"""Arenas as bytes of host memory: how they are copied, zeroed, read and written. Needs numpy, and no torch."""

from statepool.host.engine import CopyEngine, HostEngine
from statepool.host.images import Span, image_checksum, read_image, read_shifted_image, write_image
from statepool.host.regions import Bytes

__all__ = [
    "Bytes",
    "CopyEngine",
    "HostEngine",
    "Span",
    "image_checksum",
    "read_image",
    "read_shifted_image",
    "write_image",
]
