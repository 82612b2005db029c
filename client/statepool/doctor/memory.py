"""Checks of what host arenas lie in: memory limits, tmpfs, huge pages."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from statepool.doctor.cgroups import memory_limit
from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, doubtful, good
from statepool.mounts import Folder, Mount, existing
from statepool.units import format_bytes

PROCESS_BYTES = 2**30
"""Memory to leave for the server beside its arenas: interpreter and torch (0.3 GiB), journal, books, messages."""

JOURNAL_BYTES = 3 * 2**26
"""Most of a journal of the default size, which lies beside the arenas."""

HUGE_PAGES_FROM = 2**30
"""Arenas below this many bytes are quick enough with small pages."""

_STAT_BLOCK = 512
_SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


def check_memory_limit(deployment: Deployment) -> Iterator[Finding]:
    """Checks that the control group has room for the arenas: tmpfs pages count for whoever touches them first."""
    arenas = deployment.host_bytes
    if not arenas:
        return
    limit, whose = memory_limit(deployment.process), "the server" if deployment.process != "self" else "this process"
    needed = arenas + PROCESS_BYTES
    if limit is None:
        yield good("memory limit", f"none for {whose}; its arenas take {format_bytes(arenas)}")
        return
    detail = f"{format_bytes(limit)} for {whose}; arenas of {format_bytes(arenas)} are taken from it"
    remedy = f"raise it to {format_bytes(needed)} or more (resources.limits.memory, mem_limit, MemoryMax=)"
    if limit <= arenas:
        yield bad("memory limit", detail, f"{remedy}, or lower --memory")
    elif limit < needed:
        yield doubtful("memory limit", f"{detail}, which leaves {format_bytes(limit - arenas)} for the rest", remedy)
    else:
        yield good("memory limit", detail)


def check_state_dir(deployment: Deployment) -> Iterator[Finding]:
    """Checks the folder of host arenas: its file system and, before the server does so itself, its rights and room."""
    arenas, folder = deployment.host_bytes, deployment.arenas
    if not arenas or folder is None:
        return
    mount = _mount(deployment, folder)
    if mount is None or mount.kind != "tmpfs":
        yield bad(
            "state dir",
            f"{folder.path} lies on {mount.kind if mount else 'no tmpfs'}: states would be written to a disk",
            "put --state-dir on tmpfs, such as a folder below /dev/shm",
        )
        return
    is_running = deployment.pool is not None
    yield (None if is_running else _fault_of_rights(folder.path)) or good(
        "state dir", f"{folder.path}, on tmpfs {mount.point}"
    )
    if not is_running:
        yield _room(mount, folder.path, arenas)


def check_huge_pages(deployment: Deployment) -> Iterator[Finding]:
    """Checks that large arenas may have huge pages, which copies and the filling of page tables gain from."""
    folder = deployment.arenas
    if (deployment.host_bytes or 0) < HUGE_PAGES_FROM or folder is None:
        return
    mount = _mount(deployment, folder)
    if mount is None or mount.kind != "tmpfs" or not _SHMEM_ENABLED.exists():
        return
    word = _SHMEM_ENABLED.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    detail = f"tmpfs {mount.point}: huge={mount.huge}, shmem_enabled={word}"
    if word == "force" or (word != "deny" and mount.huge != "never"):
        yield good("huge pages", detail)
    elif word == "deny":
        yield doubtful("huge pages", f"denied: {detail}", f"on the host: echo never > {_SHMEM_ENABLED}, and look again")
    else:
        yield doubtful(
            "huge pages",
            f"none: {detail}",
            f"on the host: mount -o remount,huge=advise {mount.point}, or boot with transparent_hugepage_tmpfs=advise "
            "(Linux 6.14)",
        )


def _mount(deployment: Deployment, folder: Folder) -> Mount | None:
    with suppress(OSError):
        return Mount.of(folder.device, deployment.process if deployment.pool else "self")
    return None


def _fault_of_rights(folder: Path) -> Finding | None:
    try:
        status = folder.stat()
    except OSError:
        if os.access(existing(folder), os.W_OK | os.X_OK):
            return None  # the server will make it
        return bad("state dir", f"{folder}: cannot be made by user {os.getuid()}", "make its parent writable for it")
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        return bad(
            "state dir",
            f"{folder}: mode {status.st_mode & 0o7777:04o}, user {status.st_uid}: a server takes nothing but a folder "
            f"of its user ({os.getuid()}) alone",
            f"chmod 700 {folder}, and chown it to the server's user",
        )
    return None


def _room(mount: Mount, folder: Path, arenas: int) -> Finding:
    """Compares what is free, and what a server before this one has left for it, with what a server will take."""
    system = os.statvfs(existing(folder))
    left = sum(file.stat().st_blocks * _STAT_BLOCK for file in folder.glob("*") if file.is_file())
    room = system.f_bavail * system.f_frsize + left
    detail = f"{format_bytes(room)} free on {mount.point}"
    detail += f", {format_bytes(left)} of it held by what a server has left" if left else ""
    detail += f"; arenas take {format_bytes(arenas)}, a journal {format_bytes(JOURNAL_BYTES)} at most"
    remedy = "enlarge it (emptyDir sizeLimit, shm_size, mount -o remount,size=…), or lower --memory"
    if room < arenas:
        return bad("tmpfs room", detail, remedy)
    if room < arenas + JOURNAL_BYTES:
        return doubtful("tmpfs room", detail, f"{remedy} or --journal-bytes")
    return good("tmpfs room", detail)
