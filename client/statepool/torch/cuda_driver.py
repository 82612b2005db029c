"""Calls of the CUDA driver through NVIDIA's own bindings (``statepool[cuda]``), loaded when they are first needed."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

UUID_BYTES = 16
"""Bytes of a device's UUID."""


class CudaError(RuntimeError):
    """The driver refuses something, or cannot be used at all.

    Attributes:
        code: Name of the driver's error, such as ``CUDA_ERROR_OUT_OF_MEMORY``; empty: there is no driver, or no device.
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@functools.cache
def driver() -> Any:
    """Loads and initializes the driver.

    Returns:
        The module ``cuda.bindings.driver``.

    Raises:
        CudaError: The bindings are not installed, or there is no driver or no device.
    """
    try:
        from cuda.bindings import driver as module

        call(module.cuInit, 0)
    except ImportError as error:
        raise CudaError(f"sharing CUDA memory needs cuda-bindings: pip install 'statepool[cuda]' ({error})") from error
    except CudaError:
        raise
    except RuntimeError as error:  # the bindings find no driver
        raise CudaError(f"no CUDA driver: {error}") from error
    return module


def call(function: Callable[..., Any], *arguments: object) -> Any:
    """Calls the driver.

    Args:
        function: A function of the bindings; it returns an error code and at most one result.
        arguments: Its arguments.

    Returns:
        The result, or None.

    Raises:
        CudaError: Any code but success.
    """
    code, *results = function(*arguments)
    if code != 0:
        raise CudaError(f"{function.__name__}: {code.name}", code.name)
    return results[0] if results else None


def device_uuid(ordinal: int) -> bytes:
    """Tells a device's UUID, 16 bytes; of a MIG instance, its own.

    Args:
        ordinal: The device, as this process counts them: torch counts the same.

    Raises:
        CudaError: There is no such device.
    """
    cuda = driver()
    ask = getattr(cuda, "cuDeviceGetUuid_v2", cuda.cuDeviceGetUuid)  # in CUDA 13 the name without v2 means the same
    return bytes(call(ask, call(cuda.cuDeviceGet, ordinal)).bytes[:UUID_BYTES])


def find_device(uuid: bytes) -> int:
    """Finds the ordinal that a device has in this process.

    Raises:
        CudaError: This process does not see it.
    """
    seen = [device_uuid(ordinal) for ordinal in range(call(driver().cuDeviceGetCount))]
    if uuid not in seen:
        names = ", ".join(map(uuid_text, seen)) or "none"
        raise CudaError(f"this process does not see {uuid_text(uuid)}, only {names}: see CUDA_VISIBLE_DEVICES")
    return seen.index(uuid)


def uuid_text(uuid: bytes) -> str:
    """Writes a device's UUID as ``nvidia-smi -L`` does, without the word that tells devices from MIG instances."""
    return f"GPU-{UUID(bytes=uuid)}" if len(uuid) == UUID_BYTES else f"a device of {len(uuid)} bytes of UUID"


@contextmanager
def primary_context(ordinal: int) -> Iterator[None]:
    """Makes a device's primary context, which is torch's too, current in this thread.

    Raises:
        CudaError: The device cannot be used.
    """
    cuda = driver()
    call(cuda.cuCtxPushCurrent, _retain(ordinal))
    try:
        yield
    finally:
        call(cuda.cuCtxPopCurrent)


@functools.cache
def _retain(ordinal: int) -> Any:
    """Retains a primary context until the process ends: mappings live in it, whether or not torch uses it yet."""
    cuda = driver()
    return call(cuda.cuDevicePrimaryCtxRetain, call(cuda.cuDeviceGet, ordinal))
