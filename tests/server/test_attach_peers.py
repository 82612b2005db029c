"""Guarantee: a process is known by more than its number, and dead only when that is proven."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from statepool.errors import PeerUntrustedError
from statepool_server.service.attach_peers import DeathLock, Peer, start_time
from statepool_server.service.attach_tokens import Grant, Tokens

NOT_VISIBLE = 0
Make = Callable[[int], Peer]


def _by_pidfd(pid: int) -> Peer:
    return Peer(pid, os.getuid(), os.pidfd_open(pid))


def _by_start_time(pid: int) -> Peer:
    return Peer(pid, os.getuid(), None)


def _by_lock(pid: int) -> Peer:
    return Peer(NOT_VISIBLE, os.getuid(), None)


def _process(lock: DeathLock) -> "subprocess.Popen[bytes]":
    held = lock.take()
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[held],
    )
    os.close(held)
    return process


@pytest.mark.parametrize("make", [_by_pidfd, _by_start_time, _by_lock])
async def test_death(tmp_path: Path, make: Make) -> None:
    """Whatever proves it, it is not proven before the process is dead, and soon after."""
    lock = DeathLock(tmp_path / "lock")
    process = _process(lock)
    peer = make(process.pid)

    alive = peer.is_dead(lock)
    waiting = asyncio.ensure_future(peer.death(lock))
    process.kill()
    process.communicate()
    await asyncio.wait_for(waiting, 60)

    assert not alive
    assert peer.is_dead(lock)
    peer.close()
    lock.close()


@pytest.mark.parametrize("make", [_by_pidfd, _by_start_time, _by_lock])
async def test_death_that_a_later_server_proves(tmp_path: Path, make: Make) -> None:
    """A server that comes after the one that handed the lock over finds it held, and released."""
    process = _process(DeathLock(tmp_path / "lock"))
    known = make(process.pid)
    lock, peer = DeathLock(tmp_path / "lock"), Peer.known(known.pid, known.uid, known.started)

    alive = peer.is_dead(lock)
    process.kill()
    process.communicate()
    await asyncio.wait_for(peer.death(lock), 60)

    assert not alive
    known.close()
    lock.close()


def test_a_number_that_is_used_again(tmp_path: Path) -> None:
    """A process with the number of a dead one started later; it is not taken for it."""
    lock = DeathLock(tmp_path / "lock")
    peer = Peer(os.getpid(), os.getuid(), None)
    assert not peer.is_dead(lock)

    peer.pid = 1

    assert start_time(1) != start_time(os.getpid())
    assert peer.is_dead(lock)
    lock.close()


def test_who_connected() -> None:
    """The kernel says who is at the other end; another user is refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer.of(ours)
        peer.check_user()
        peer.close()

    assert (peer.pid, peer.uid) == (os.getpid(), os.getuid())
    with pytest.raises(PeerUntrustedError):
        Peer(os.getpid(), os.getuid() + 1, None).check_user()


def test_tokens() -> None:
    """A token is good once and for its time; old ones are forgotten."""
    now = 0.0
    tokens = Tokens(10.0, lambda: now)
    first, second = tokens.issue(Grant(0, False)), tokens.issue(Grant(1, True))

    assert tokens.redeem(second) == Grant(1, True)
    for token in (second, b""):
        with pytest.raises(PeerUntrustedError):
            tokens.redeem(token)
    assert len(tokens) == 1
    now = 10.0
    assert len(tokens) == 0
    with pytest.raises(PeerUntrustedError):
        tokens.redeem(first)
