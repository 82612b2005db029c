"""Checks of what is listened on: whether this process may connect, and whether a worker here could attach."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from statepool.doctor.deployment import Deployment
from statepool.doctor.findings import Finding, bad, doubtful, good
from statepool.doctor.listener import Listener

MAX_PATH_BYTES = 107
"""Longest path of a Unix socket (sun_path, with its closing zero)."""


def check_socket(deployment: Deployment) -> Iterator[Finding]:
    """Checks the Unix socket: that it is there, may be used, and is not left by a dead server."""
    path = deployment.socket_path
    if path is None:
        return
    fault = _fault_of_path(path) or _fault_of_connecting(path)
    yield fault or good("socket", f"{path}: {_rights(path)}, may be used by this process")


def check_attaching(deployment: Deployment) -> Iterator[Finding]:
    """Checks whether a worker that runs as this process does could map the arenas."""
    listener, path, info = deployment.listener, deployment.socket_path, deployment.answers
    if listener is None or path is None or info is None or not deployment.host_bytes:
        return
    yield _user(listener)
    attach = path.with_name(f"{path.name}.attach")
    if attach.is_socket():
        yield good("attach socket", str(attach))
    else:
        yield bad("attach socket", f"{attach}: missing", f"share the whole folder {path.parent}, not just the socket")
    yield _pid_namespace(listener, info[0].pid)


def _fault_of_path(path: Path) -> Finding | None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        return bad("socket", f"{path}: longer than {MAX_PATH_BYTES} bytes", "listen at a shorter path")
    try:
        status = path.lstat()
    except PermissionError:
        return bad(
            "socket",
            f"{path.parent}: {_rights(path.parent)}, may not be entered",
            "run this process as the server's user or group, or let its group in: chmod 750",
        )
    except OSError:
        missing = path if path.parent.is_dir() else path.parent
        return bad(
            "socket",
            f"{missing}: does not exist",
            "start the server there (--listen), or mount the folder of its socket here",
        )
    if not stat.S_ISSOCK(status.st_mode):
        return bad("socket", f"{path}: not a socket", "remove it, or listen at another path")
    return None


def _fault_of_connecting(path: Path) -> Finding | None:
    try:
        Listener.at(path)
    except PermissionError:
        return bad(
            "socket",
            f"{path}: {_rights(path)}, may not be used by user {os.getuid()}",
            "run this process as the server's user, or with its group and --socket-access group for the server",
        )
    except OSError as error:
        dead = error.errno == errno.ECONNREFUSED
        return bad(
            "socket",
            f"{path}: {error.strerror}" + (": left by a server that is dead" if dead else ""),
            "start the server; it takes the place of a dead one's socket",
        )
    return None


def _rights(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return error.strerror or str(error)
    return f"mode {status.st_mode & 0o7777:04o}, user {status.st_uid}, group {status.st_gid}"


def _user(listener: Listener) -> Finding:
    if listener.uid == os.getuid():
        return good("user", f"{listener.uid}, the server's own: a worker of this user can attach")
    return doubtful(
        "user",
        f"the server runs as {listener.uid}, this process as {os.getuid()}: it can call, not attach",
        "run the worker as the server's user (runAsUser, --user, User=)",
    )


def _pid_namespace(listener: Listener, own_pid: int) -> Finding:
    """Judges whether the server could prove the death of a worker that runs here."""
    if listener.pid == own_pid:
        return good("pid namespace", "the server's own")
    if listener.has_pidfd:
        return good("pid namespace", "another one than the server's; this kernel proves deaths by pidfds all the same")
    return doubtful(
        "pid namespace",
        "another one than the server's, and this kernel (before 6.5) has no pidfds of peers: a worker's death is "
        "known by its lock only",
        "share the pid namespace (shareProcessNamespace: true, --pid), or run Linux 6.5",
    )
