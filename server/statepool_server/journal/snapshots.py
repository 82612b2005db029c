"""A state of everything at one moment, in one file that is either whole or not there."""

import os
import struct
from pathlib import Path

import xxhash

from statepool_server import failpoints

_HEADER = struct.Struct("<8sQQ")  # magic, checksum, number
_MAGIC = b"SPSNAP01"


def write_snapshot(path: Path, number: int, body: bytes) -> None:
    """Writes a snapshot in place of any that is there.

    Raises:
        OSError: The file system has not so much room; nothing has changed.
    """
    draft = path.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_HEADER.pack(_MAGIC, xxhash.xxh3_64_intdigest(body, number), number))
            file.write(body)
        failpoints.reach("snapshot")
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read_snapshot(path: Path, number: int) -> bytes | None:
    """Reads a snapshot; None where it is not the one of that number, or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, checksum, found = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    whole = magic == _MAGIC and found == number and checksum == xxhash.xxh3_64_intdigest(body, number)
    return body if whole else None
