"""All checks, in the order in which a deployment breaks."""

from collections.abc import Callable, Iterator

from statepool.doctor.deployment import Deployment
from statepool.doctor.devices import check_devices
from statepool.doctor.findings import Finding
from statepool.doctor.memory import check_huge_pages, check_memory_limit, check_state_dir
from statepool.doctor.server import check_caller, check_health, check_layout, check_quarantine, check_versions
from statepool.doctor.sockets import check_attaching, check_socket
from statepool.doctor.tls import check_admin_listeners, check_tls, check_tls_files

CHECKS: tuple[Callable[[Deployment], Iterator[Finding]], ...] = (
    check_socket,
    check_tls_files,
    check_tls,
    check_health,
    check_caller,
    check_admin_listeners,
    check_versions,
    check_attaching,
    check_layout,
    check_memory_limit,
    check_state_dir,
    check_huge_pages,
    check_devices,
    check_quarantine,
)
"""Every check; one that does not apply yields nothing."""


def examine(deployment: Deployment) -> list[Finding]:
    """Runs all checks."""
    return [finding for check in CHECKS for finding in check(deployment)]
