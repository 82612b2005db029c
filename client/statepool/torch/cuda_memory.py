"""Device memory that processes share: an allocation is exported as a descriptor, imported, and mapped without a copy.

CUDA has two ways to share memory. This is the virtual memory API (cuMemCreate, cuMemExportToShareableHandle, cuMemMap),
not the older IPC handles (cuIpcGetMemHandle), because what it exports is a file descriptor. So it goes through the same
socket as a descriptor of host memory, into containers that share nothing else; the memory lives until its last user is
gone, whoever ends first; a process can map it for reading only; and what is unmapped is out of reach at once. IPC
handles are bytes that anybody can copy, always allow writing, and leave undefined what happens when the exporting
process frees the memory before the others have closed it.
"""

import os
import weakref
from contextlib import ExitStack
from typing import Any, Self

from statepool.torch.cuda_driver import CudaError, call, driver, find_device, primary_context


def round_up(nbytes: int, granularity: int) -> int:
    """Rounds a size up to a multiple of a granularity.

    Args:
        nbytes: The size in bytes.
        granularity: Bytes, positive.
    """
    return -(-nbytes // granularity) * granularity


def allocation_properties(ordinal: int) -> Any:
    """Describes memory of a device that can be exported as a file descriptor (``CUmemAllocationProp``)."""
    from cuda.bindings import driver as cuda

    properties = cuda.CUmemAllocationProp()
    properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = ordinal
    properties.requestedHandleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    return properties


def access_description(ordinal: int, *, read_only: bool) -> Any:
    """Describes what a device may do to a mapping (``CUmemAccessDesc``)."""
    from cuda.bindings import driver as cuda

    flags, access = cuda.CUmemAccess_flags, cuda.CUmemAccessDesc()
    access.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = ordinal
    access.flags = flags.CU_MEM_ACCESS_FLAGS_PROT_READ if read_only else flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access


class CudaAllocation:
    """A handle of physical memory of one device; the memory lives until no handle, descriptor or mapping of it is left.

    Attributes:
        ordinal: The device, as this process counts them.
        nbytes: Its size, a multiple of the device's granularity.
    """

    def __init__(self, handle: Any, ordinal: int, nbytes: int) -> None:
        """Takes over a handle; see `create` and `imported`."""
        self.ordinal = ordinal
        self.nbytes = nbytes
        self._handle = handle

    @classmethod
    def create(cls, ordinal: int, nbytes: int) -> Self:
        """Allocates memory; its content is undefined.

        Args:
            ordinal: The device.
            nbytes: The least size; it is rounded up.

        Raises:
            CudaError: The device cannot export memory, or has not so much.
        """
        cuda = driver()
        _check_exports(ordinal)
        properties = allocation_properties(ordinal)
        best = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
        nbytes = round_up(nbytes, call(cuda.cuMemGetAllocationGranularity, properties, best))
        with primary_context(ordinal):
            return cls(call(cuda.cuMemCreate, nbytes, properties, 0), ordinal, nbytes)

    @classmethod
    def imported(cls, descriptor: int, device_uuid: bytes, nbytes: int) -> Self:
        """Takes in memory that another process has exported.

        Args:
            descriptor: What `export` gave; the caller may close it afterwards.
            device_uuid: The device that the memory lies on.
            nbytes: The allocation's size.

        Raises:
            CudaError: This process does not see the device, or the descriptor is of something else.
        """
        cuda = driver()
        ordinal = find_device(device_uuid)
        with primary_context(ordinal):
            handle = call(cuda.cuMemImportFromShareableHandle, descriptor, _descriptor_type(cuda))
        return cls(handle, ordinal, nbytes)

    def export(self) -> int:
        """Opens a descriptor of the memory, close-on-exec; the caller closes it.

        Raises:
            CudaError: The driver refuses.
        """
        cuda = driver()
        descriptor = int(call(cuda.cuMemExportToShareableHandle, self._handle, _descriptor_type(cuda), 0))
        os.set_inheritable(descriptor, False)
        return descriptor

    def map(self, nbytes: int, *, read_only: bool) -> "CudaMapping":
        """Maps all of it.

        Args:
            nbytes: How much of it is of use.
            read_only: Whether the device may only read it through this mapping.

        Raises:
            CudaError: It cannot be mapped so.
        """
        return CudaMapping(self, self._handle, nbytes, read_only=read_only)

    def release(self) -> None:
        """Gives the handle back; mappings stay."""
        call(driver().cuMemRelease, self._handle)


class DeviceBytes:
    """Bytes of a device, for whoever reads ``__cuda_array_interface__``: `torch.as_tensor` makes a view of them.

    Attributes:
        ordinal: The device.
        address: Where they begin.
        nbytes: How many.
    """

    def __init__(self, ordinal: int, address: int, nbytes: int) -> None:
        self.ordinal = ordinal
        self.address = address
        self.nbytes = nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        """The bytes as uint8, ``[nbytes]``, in version 3 of the interface.

        They are never said to be read-only, though writing to such a mapping fails on the device: torch knows no
        read-only tensors and refuses.
        """
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "strides": None}


class CudaMapping:
    """An allocation in this process's address space.

    Attributes:
        buffer: The bytes; they keep their addresses for themselves as long as anybody has them, mapped or not.
    """

    def __init__(self, allocation: CudaAllocation, handle: Any, nbytes: int, *, read_only: bool) -> None:
        """Maps an allocation; see `CudaAllocation.map`."""
        cuda, size = driver(), allocation.nbytes
        if nbytes > size:
            raise CudaError(f"an allocation of {size} bytes does not hold {nbytes}")
        self._ordinal, self._size = allocation.ordinal, size
        with primary_context(self._ordinal), ExitStack() as undo:
            self._address = int(call(cuda.cuMemAddressReserve, size, 0, 0, 0))
            undo.callback(call, cuda.cuMemAddressFree, self._address, size)
            call(cuda.cuMemMap, self._address, size, 0, handle, 0)
            undo.callback(call, cuda.cuMemUnmap, self._address, size)
            access = access_description(self._ordinal, read_only=read_only)
            call(cuda.cuMemSetAccess, self._address, size, [access], 1)
            undo.pop_all()
        self._is_mapped = True
        self.buffer = DeviceBytes(self._ordinal, self._address, nbytes)
        weakref.finalize(self.buffer, _free_addresses, self._address, size, os.getpid()).atexit = False

    def detach(self) -> None:
        """Waits for all that this process has queued on the device, and unmaps; a later use fails on the device.

        Raises:
            CudaError: The device failed; it may be mapped still.
        """
        if not self._is_mapped:
            return
        with primary_context(self._ordinal):
            call(driver().cuCtxSynchronize)
            call(driver().cuMemUnmap, self._address, self._size)
        self._is_mapped = False


def _check_exports(ordinal: int) -> None:
    """Checks what a device can do: some virtual ones can neither map nor export.

    Raises:
        CudaError: It cannot.
    """
    cuda = driver()
    device, kinds = call(cuda.cuDeviceGet, ordinal), cuda.CUdevice_attribute
    for kind in (
        kinds.CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        kinds.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
    ):
        if not call(cuda.cuDeviceGetAttribute, kind, device):
            raise CudaError(f"device {ordinal} cannot export memory: {kind.name} is 0", "CUDA_ERROR_NOT_SUPPORTED")


def _descriptor_type(cuda: Any) -> Any:
    return cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _free_addresses(address: int, size: int, pid: int) -> None:
    """Lets others have the addresses; where they are mapped still, the driver refuses and they stay taken."""
    if os.getpid() == pid:  # a forked process has no context
        driver().cuMemAddressFree(address, size)
