"""What allocations of a simulated device do in one process, as JSON."""

import ctypes
import json
import os
from collections.abc import Callable
from functools import partial

from statepool.torch.cuda_driver import CudaError, device_uuid, find_device, uuid_text
from statepool.torch.cuda_memory import CudaAllocation, CudaMapping

NBYTES = 5_000_000


def mapped(mapping: CudaMapping) -> "ctypes.Array[ctypes.c_ubyte]":
    """Takes the mapping for the host's memory, which it is."""
    return (ctypes.c_ubyte * mapping.buffer.nbytes).from_address(mapping.buffer.address)


def refusal(make: Callable[..., object], *arguments: object) -> list[str]:
    """Tells the error of a call."""
    try:
        make(*arguments)
    except CudaError as error:
        return [str(error), error.code]
    return []


def mappings() -> int:
    """Counts the mappings of device memory that this process has."""
    with open("/proc/self/maps", encoding="ascii") as lines:  # noqa: PTH123 — the pathlib way reads no faster
        return sum("simulated-cuda" in line for line in lines)


def descriptors() -> int:
    """Counts the descriptors of device memory that this process has."""
    paths = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
    return sum("simulated-cuda" in os.readlink(path) for path in paths if os.path.lexists(path))  # noqa: PTH115


created = CudaAllocation.create(1, NBYTES)
descriptor = created.export()
writer = created.map(NBYTES, read_only=False)
taken = CudaAllocation.imported(descriptor, device_uuid(1), created.nbytes)
reader = taken.map(NBYTES, read_only=True)
inheritable = os.get_inheritable(descriptor)
for allocation in (created, taken):
    allocation.release()
os.close(descriptor)
mapped(writer)[NBYTES - 1] = 7
seen = mapped(reader)[NBYTES - 1]
mapped_twice = mappings()
for mapping in (reader, writer, writer):
    mapping.detach()
pipe, _ = os.pipe()
small = CudaAllocation.create(0, 1)
print(
    json.dumps(
        {
            "nbytes": created.nbytes,
            "inheritable": inheritable,
            "seen": seen,
            "interface": reader.buffer.__cuda_array_interface__ | {"data": None},
            "mapped": mapped_twice,
            "left": [mappings(), descriptors()],
            "uuid": uuid_text(device_uuid(1)),
            "found": [find_device(device_uuid(ordinal)) for ordinal in range(2)],
            "too_large": refusal(CudaAllocation.create, 0, 2**40),
            "no_device": refusal(device_uuid, 2),
            "not_seen": refusal(CudaAllocation.imported, pipe, bytes([9]) * 16, 2**21),
            "no_memory": refusal(CudaAllocation.imported, pipe, device_uuid(0), 2**21),
            "too_small": refusal(partial(small.map, read_only=True), 2**21 + 1),
        },
        default=list,
    )
)
