"""What every arena is: its interface, how another process gets at it, and why one cannot be had."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from statepool.host import Bytes

if TYPE_CHECKING:
    import torch  # a second that a server of host memory need not spend


class ArenaError(RuntimeError):
    """The memory of an arena cannot be had; the message has the numbers and what to do."""


@dataclass(frozen=True, slots=True)
class Export:
    """What another process must know to map an arena, beside its descriptor."""

    device_uuid: bytes = b""
    """The device that it lies on, 16 bytes; empty: host memory."""
    mapping_bytes: int = 0
    """Bytes of the device's allocation, a multiple of its granularity; 0: host memory."""


class Arena(Protocol):
    """Memory of one rank."""

    @property
    def memory(self) -> Bytes | None:
        """The whole arena, uint8, ``[arena bytes]``, zero-filled when new; None: it is a device's."""

    @property
    def tensor(self) -> "torch.Tensor":
        """The whole arena as a tensor, uint8, ``[arena bytes]``."""

    @property
    def address(self) -> int:
        """Where it begins in this process."""

    def read(self, start: int, nbytes: int) -> Bytes:
        """Reads bytes, ``[nbytes]``: a view where it is host memory, else a copy."""

    def write(self, start: int, data: Bytes) -> None:
        """Writes bytes."""

    @property
    def export(self) -> Export | None:
        """How another process maps it; None: none can."""

    def open_descriptor(self, *, read_only: bool) -> int:
        """Opens a descriptor that another process can map from offset 0 on; the caller closes it.

        Args:
            read_only: Whether it is for reading only. A device's always allows both: what it is mapped for decides.

        Raises:
            OSError: There is no descriptor left, or the arena cannot be shared.
        """

    def close(self, *, keep: bool = False) -> None:
        """Gives the memory back; with `keep`, memory that outlives the process is left for another."""
