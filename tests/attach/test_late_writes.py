"""Guarantee: no write for a lost session lands in a block that somebody else was given, whatever came before it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from service.servers import CAPACITY, DEADLINE_SECONDS, Server, until
from statepool import BlockRefs, Client, PeerUntrustedError, Session, SessionFencedError
from statepool.torch import AttachedPool, attach

FORKING_WORKER = """
import mmap, os, socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect(sys.argv[1])
stream.sendall(bytes.fromhex(sys.argv[2]))
_, descriptors, _, _ = socket.recv_fds(stream, 4096, 2, socket.MSG_CMSG_CLOEXEC)
memory = mmap.mmap(descriptors[0], 0)
if not (pid := os.fork()):
    stream.close()
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print(pid, flush=True)
sys.stdin.read()
"""
"""Speaks the protocol without the client library, and forks while it maps the arena."""


def write_late(pool: AttachedPool, session: Session, blocks: BlockRefs) -> None:
    """Begins a pass of a session that is over, and would write."""
    with pool.writing(session.session_id, session.epoch):
        pool.views["layers.0.ssm"][blocks.block_ids] = 9


def test_a_session_that_was_lost_before_the_worker_came(client: Client) -> None:
    """A restarted worker that is sent the pass of a dead scheduler refuses it, though no fence told it."""
    lost = client.create_session(60.0)
    blocks = lost.allocate_blocks(1)
    lost.delete()

    with client.create_session(60.0) as heir, attach(client) as pool:
        theirs = heir.allocate_blocks(1)
        assert theirs.block_ids.tolist() == blocks.block_ids.tolist()
        with pytest.raises(SessionFencedError):
            write_late(pool, lost, blocks)
        with pool.writing(heir.session_id, heir.epoch):
            pass


def test_an_epoch_that_was_lost_before_the_worker_came(server: Server, client: Client) -> None:
    """After a take-over a worker that attaches later knows the epoch as well."""
    former = client.create_session(60.0, owner_key="late")
    with server.client() as successor:
        session = successor.create_session(60.0, owner_key="late", take_over=True)
        with attach(client) as pool:
            with pytest.raises(SessionFencedError), pool.writing(former.session_id, former.epoch):
                pass
            with pool.writing(session.session_id, session.epoch):
                pass


def test_a_session_that_held_nothing_when_it_was_lost(client: Client) -> None:
    """What it has freed before belongs to others, so its passes are refused like those of any lost session."""
    with attach(client) as pool:
        lost = client.create_session(60.0)
        blocks = lost.allocate_blocks(1)
        lost.free_blocks(blocks)
        lost.delete()

        with client.create_session(60.0) as heir:
            assert heir.allocate_blocks(1).block_ids.tolist() == blocks.block_ids.tolist()
            until(lambda: client.list_attachments()[0].unanswered_fences == 0, "the answer")
            with pytest.raises(SessionFencedError):
                write_late(pool, lost, blocks)


def test_nobody_else_gives_the_word_of_a_process(server: Server, client: Client) -> None:
    """Detaching needs the token that only the process has; without it quarantine stays."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    with attach(client) as pool, pool.writing(session.session_id, session.epoch):
        session.delete()
        with server.client() as stranger, pytest.raises(PeerUntrustedError):
            stranger.detach_pool(pool.attachment_id, os.urandom(16))
        assert client.get_pool().usage.quarantined_blocks == 2


def test_a_process_that_shares_the_memory_of_a_dead_one(client: Client) -> None:
    """A worker is not dead while something that it has forked maps the arena still."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    offer = client.attach_pool()
    hello = b"\x0a\x12\x0a\x10" + offer.token
    arguments = [offer.socket_path, (len(hello).to_bytes(4, "little") + hello).hex()]
    with subprocess.Popen(
        [sys.executable, "-c", FORKING_WORKER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        child = int(worker.stdout.readline())
        session.delete()
        worker.kill()
        worker.wait(DEADLINE_SECONDS)
        until(lambda: not client.list_attachments()[0].is_connected, "the end of the connection")

        waiting = client.get_pool().usage.quarantined_blocks
        listed = len(client.list_attachments())
        os.kill(child, signal.SIGKILL)

        until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the blocks")
    assert (waiting, listed) == (2, 1)


def test_what_is_queued_on_a_device(client: Client) -> None:
    """The end of a pass is not the end of its writes where a device does them: a fence waits for the device too."""
    asked, done = threading.Event(), threading.Event()

    def synchronize() -> None:
        asked.set()
        assert done.wait(DEADLINE_SECONDS)

    session = client.create_session(60.0)
    session.allocate_blocks(2)
    with attach(client, synchronize=synchronize):
        session.delete()
        assert asked.wait(DEADLINE_SECONDS)
        waiting = client.get_pool().usage.quarantined_blocks
        done.set()
        until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the blocks")

    assert waiting == 2


def test_a_device_that_fails(client: Client) -> None:
    """When nobody can tell whether the writes have ended, nothing is answered, and no other pass begins."""

    def synchronize() -> None:
        raise RuntimeError("planted")

    session = client.create_session(60.0)
    session.allocate_blocks(2)
    pool = attach(client, synchronize=synchronize)
    session.delete()

    until(lambda: pool.error is not None, "the failure")

    assert client.get_pool().usage.quarantined_blocks == 2
    pool.close()
    until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the blocks")
