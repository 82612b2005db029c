"""Checks of what host arenas lie in: memory limits, tmpfs, huge pages."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from statepool.doctor.cgroups import memory_limit
from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, doubtful, good
from statepool.doctor.mounts import Mount
from statepool.units import format_bytes

PROCESS_BYTES = 2**30
"""Memory to leave for the server beside its arenas: the interpreter and torch (0.3 GiB), books, messages under way."""

HUGE_PAGES_FROM = 2**30
"""Arenas below this many bytes are quick enough with small pages."""

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
    """Checks the folder of host arenas: its file system, rights, and room."""
    if not deployment.host_bytes:
        return
    folder = deployment.state_dir
    try:
        mount = Mount.of(folder, deployment.process)
    except OSError:
        return  # a server of another user, whose mounts are its own affair
    if mount.kind != "tmpfs":
        yield bad(
            "state dir",
            f"{folder} lies on {mount.kind} ({mount.point}): states would be written to a disk",
            "put --state-dir on tmpfs, such as a folder below /dev/shm",
        )
        return
    visible = Path(f"/proc/{deployment.process}/root") / folder.relative_to("/")
    yield _rights(folder, visible) or good("state dir", f"{folder}, on tmpfs {mount.point}")
    if deployment.pool is None:  # a running server has taken its memory
        yield _room(mount, visible, deployment.host_bytes)


def check_huge_pages(deployment: Deployment) -> Iterator[Finding]:
    """Checks that large arenas may have huge pages, which copies and the filling of page tables gain from."""
    if (deployment.host_bytes or 0) < HUGE_PAGES_FROM:
        return
    with suppress(OSError):
        mount = Mount.of(deployment.state_dir, deployment.process)
        if mount.kind != "tmpfs":
            return
        word = _SHMEM_ENABLED.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
        if word == "force" or (word != "deny" and mount.huge != "never"):
            yield good("huge pages", f"tmpfs {mount.point}: huge={mount.huge}, shmem_enabled={word}")
        else:
            yield doubtful(
                "huge pages",
                f"none: tmpfs {mount.point}: huge={mount.huge}, shmem_enabled={word}",
                f"on the host: mount -o remount,huge=advise {mount.point}, or boot with "
                "transparent_hugepage_tmpfs=advise (Linux 6.14)"
                + (f"; echo never > {_SHMEM_ENABLED}" if word == "deny" else ""),
            )


def _rights(folder: Path, visible: Path) -> Finding | None:
    try:
        status = visible.stat()
    except FileNotFoundError:
        parent = _existing(visible)
        if os.access(parent, os.W_OK | os.X_OK):
            return None  # the server will make it
        return bad("state dir", f"{folder}: cannot be made by user {os.getuid()}", "make its parent writable for it")
    except OSError:
        return None  # a server of another user
    if status.st_mode & 0o077:
        return bad(
            "state dir",
            f"{folder}: mode {status.st_mode & 0o7777:04o}: a server refuses a folder that others may enter",
            f"chmod 700 {folder}",
        )
    return None


def _room(mount: Mount, visible: Path, arenas: int) -> Finding:
    system = os.statvfs(_existing(visible))
    free = system.f_bavail * system.f_frsize
    detail = f"{format_bytes(free)} free on {mount.point}; arenas take {format_bytes(arenas)}"
    if free >= arenas:
        return good("tmpfs room", detail)
    return bad(
        "tmpfs room",
        detail,
        "enlarge it (emptyDir sizeLimit, shm_size, mount -o remount,size=…), remove what a dead server left there "
        "(rank*.arena), or lower --memory",
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
