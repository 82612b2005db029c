"""Arenas in device memory: one that other processes can map, where device and driver allow it, else a plain one.

What sharing rests on, and why, is in `statepool.torch.cuda_memory`.
"""

import errno
import os

import structlog
import torch

from statepool.host import Bytes
from statepool.torch.cuda_driver import CudaError, device_uuid
from statepool.torch.cuda_memory import CudaAllocation, DeviceBytes
from statepool.units import format_bytes
from statepool_server.arena_types import Arena, ArenaError, Export

_log = structlog.get_logger("statepool.memory")


def open_cuda_arena(device: str, nbytes: int) -> Arena:
    """Takes zero-filled device memory.

    Args:
        device: ``cuda:N``.
        nbytes: Size of the arena.

    Raises:
        ArenaError: There is no CUDA, no such device, or not so much free memory.
    """
    index = _usable_index(device, nbytes)
    try:
        return SharedCudaArena(index, nbytes)
    except CudaError as error:
        if error.code == "CUDA_ERROR_OUT_OF_MEMORY":
            raise _too_large(device, nbytes) from error
        _log.warning("device memory cannot be attached", device=device, reason=str(error))
    try:
        return PrivateCudaArena(index, nbytes)
    except torch.OutOfMemoryError as error:
        raise _too_large(device, nbytes) from error


class _CudaArena:
    """What both have in common."""

    memory = None
    """None of the host's."""
    _tensor: torch.Tensor | None

    @property
    def tensor(self) -> torch.Tensor:
        """The whole arena, uint8, ``[arena bytes]``."""
        if self._tensor is None:
            raise ValueError("the arena is closed")
        return self._tensor

    @property
    def address(self) -> int:
        """Where it begins in this process."""
        return self.tensor.data_ptr()

    def read(self, start: int, nbytes: int) -> Bytes:
        """Reads a copy of bytes."""
        copy: Bytes = self.tensor[start : start + nbytes].cpu().numpy()
        return copy

    def write(self, start: int, data: Bytes) -> None:
        """Writes bytes."""
        self.tensor[start : start + len(data)].copy_(torch.from_numpy(data.copy()))


class SharedCudaArena(_CudaArena):
    """An allocation that is exported as a descriptor; this process maps it as others do."""

    def __init__(self, index: int, nbytes: int) -> None:
        """Allocates, exports, maps and zeroes it.

        Args:
            index: The device, as torch counts them.
            nbytes: Size of the arena.

        Raises:
            CudaError: The device has not so much memory, or cannot export it.
        """
        allocation = CudaAllocation.create(index, nbytes)
        try:
            # Exported once: a driver that hangs must not hold up those who attach.
            self._descriptor = allocation.export()
            try:
                self._mapping = allocation.map(nbytes, read_only=False)
            except BaseException:
                os.close(self._descriptor)
                raise
        finally:
            allocation.release()  # the descriptor and the mapping keep the memory
        self.export = Export(device_uuid(index), allocation.nbytes)
        self._tensor = self._zeroed(self._mapping.buffer)

    def open_descriptor(self, *, read_only: bool) -> int:
        """Duplicates the descriptor.

        Raises:
            OSError: There is no descriptor left.
        """
        del read_only
        return os.dup(self._descriptor)

    def close(self, *, keep: bool = False) -> None:
        """Unmaps the memory; it is free when every attached process has unmapped it too."""
        del keep  # device memory does not outlive the processes that use it
        if self._tensor is None:
            return
        self._tensor = None
        os.close(self._descriptor)
        self._mapping.detach()

    def _zeroed(self, memory: DeviceBytes) -> torch.Tensor:
        """Makes a tensor of the mapping, uint8, ``[arena bytes]``, and waits until it is zero."""
        tensor = torch.as_tensor(memory, device=f"cuda:{memory.ordinal}").zero_()
        torch.cuda.synchronize(memory.ordinal)
        return tensor


class PrivateCudaArena(_CudaArena):
    """One torch allocation, where the driver cannot export memory."""

    export = None
    """No other process can map it."""

    def __init__(self, index: int, nbytes: int) -> None:
        """Allocates and zeroes it.

        Args:
            index: The device, as torch counts them.
            nbytes: Size of the arena.

        Raises:
            torch.OutOfMemoryError: The device has not so much memory.
        """
        self._tensor = torch.zeros(nbytes, dtype=torch.uint8, device=f"cuda:{index}")
        torch.cuda.synchronize(index)

    def open_descriptor(self, *, read_only: bool) -> int:
        """Refuses.

        Raises:
            OSError: Always.
        """
        del read_only
        raise OSError(errno.ENOTSUP, "this device's memory has no descriptor")

    def close(self, *, keep: bool = False) -> None:
        """Drops the allocation."""
        del keep
        self._tensor = None


def _usable_index(device: str, nbytes: int) -> int:
    """Finds the device, and checks that it has room.

    Raises:
        ArenaError: There is no CUDA, no such device, or not so much free memory.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = torch.device(device).index or 0
    if index >= count:
        raise ArenaError(f"{device}: this machine has {count} usable CUDA devices; --device cpu works without one")
    if nbytes > torch.cuda.mem_get_info(index)[0]:
        raise _too_large(device, nbytes)
    return index


def _too_large(device: str, nbytes: int) -> ArenaError:
    free, total = torch.cuda.mem_get_info(device)
    return ArenaError(
        f"{device}: the arena needs {nbytes} bytes ({format_bytes(nbytes)}); {free} ({format_bytes(free)}) of {total} "
        "are free; use a smaller --memory or --blocks"
    )
