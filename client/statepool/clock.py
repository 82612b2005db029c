"""The clock of leases."""

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> float:
    """Reads the seconds that have passed, by a clock that nobody sets.

    Where the system has it (Linux), it goes on while the machine is suspended, since leases end meanwhile. A server
    that was suspended itself gives its leases up later, never earlier, than their owners.
    """
    return time.clock_gettime(_CLOCK)
