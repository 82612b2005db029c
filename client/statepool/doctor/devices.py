"""Checks of the devices that a server is to use, by the driver itself."""

import ctypes
from collections.abc import Iterator

from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, good

LIBRARY = "libcuda.so.1"
"""The user's part of the driver; in a container it comes from the host."""


def check_devices(deployment: Deployment) -> Iterator[Finding]:
    """Checks that the driver shows the devices of a server that does not run; one that runs has proven it."""
    if deployment.pool is not None:
        yield good("devices", f"the server holds {', '.join(deployment.pool.devices)}")
        return
    kind, _, numbers = deployment.wanted.device.partition(":")
    if kind != "cuda":
        return
    try:
        count = _count()
    except OSError as error:
        yield bad("devices", str(error), "install the driver; run a container with --gpus, or a nvidia.com/gpu limit")
        return
    if missing := [number for number in numbers.split(",") if not number.isdecimal() or int(number) >= count]:
        yield bad(
            "devices",
            f"the driver shows {count} devices here, so there is no cuda:{missing[0]}",
            "check CUDA_VISIBLE_DEVICES and NVIDIA_VISIBLE_DEVICES, or the devices that the container asks for",
        )
    else:
        yield good("devices", f"the driver shows {count} devices")


def _count() -> int:
    """Counts the visible devices.

    Raises:
        OSError: There is no driver, or it does not work.
    """
    driver = ctypes.CDLL(LIBRARY)
    count = ctypes.c_int(0)
    if error := driver.cuInit(0):
        raise OSError(f"{LIBRARY}: cuInit failed with error {error}")
    if error := driver.cuDeviceGetCount(ctypes.byref(count)):
        raise OSError(f"{LIBRARY}: cuDeviceGetCount failed with error {error}")
    return count.value
