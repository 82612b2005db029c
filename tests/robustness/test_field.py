"""Guarantee: what users of neighbouring systems ran into does not happen here; README.md lists it, row by row."""

import ast
import contextlib
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from attach.workers import Worker, Workers
from service.conftest import client, server, servers, session, stubs
from service.raw import Stubs, ref_of, refs
from service.servers import CAPACITY, IMAGE_BYTES, Server, Servers, until
from statepool import Client, IncarnationMismatchError, PoolExhaustedError, Session
from statepool.v1 import block_pb2

__all__ = ["client", "server", "servers", "session", "stubs"]

TESTS = Path(__file__).parent.parent
ROW = re.compile(r"^\| .* \| (?P<tests>`[^|]*`) \|$", re.MULTILINE)
NAME = re.compile(r"`(?P<path>[\w/]+\.py)(?:::(?P<test>\w+))?`")


def mapped(process: psutil.Process) -> int:
    """Counts the files that a process has mapped."""
    return len(process.memory_maps(grouped=True))


def test_dead_workers_pin_nothing(servers: Servers) -> None:
    """Workers that are killed leave the server with the descriptors and mappings that it had: none was theirs."""
    server = servers.start().wait_until_ready()
    process = psutil.Process(server.process.pid)
    with server.client() as client, Workers() as workers:
        Worker(server).end()  # whatever is made at the first attachment is there now
        until(lambda: not client.list_attachments(), "the end of the first worker")
        before = process.num_fds(), mapped(process)
        started = [workers.start(server, rank_index=n % 2) for n in range(4)]

        for worker in started:
            worker.signal(signal.SIGKILL)

        until(lambda: not client.list_attachments(), "the end of the attachments")
        until(lambda: (process.num_fds(), mapped(process)) == before, "descriptors and mappings")


def test_idle_workers_and_sessions_stay(servers: Servers) -> None:
    """Neither a worker that does nothing nor a session that asks nothing is taken for dead."""
    server = servers.start().wait_until_ready()
    with server.client() as client, Workers() as workers, client.create_session(3.0) as session:
        blocks = session.allocate_blocks(1)
        worker = workers.start(server)

        time.sleep(4.0)  # longer than the lease, with nothing asked meanwhile: that is what is tested

        assert session.error is None
        assert [attached.is_connected for attached in client.list_attachments()] == [True]
        assert worker.ask("begin", session.session_id, session.epoch) == ""
        assert worker.ask("fill", int(blocks.block_ids[0]), 1) is None
        assert worker.ask("end") is None


def test_a_restart_between_two_renewals_is_noticed(tmp_path: Path) -> None:
    """A client whose lease needs no renewal yet learns of a restart from its next call, whatever its refs say."""
    former = Server(tmp_path / "server").wait_until_ready()
    with former.client() as client, former.client() as other:
        session = client.create_session(60.0)
        blocks = session.allocate_blocks(2)
        former.process.kill()
        former.wait()
        server = Server(tmp_path / "server").wait_until_ready()
        theirs = other.create_session(60.0).allocate_blocks(CAPACITY - 2)

        with pytest.raises(IncarnationMismatchError):
            session.free_blocks(blocks)

        assert isinstance(session.error, IncarnationMismatchError)
        assert len(theirs) == CAPACITY - 2
    server.stop()


def test_a_restart_forgets_and_overwrites_nothing(tmp_path: Path) -> None:
    """After a crash what was committed is found, what was held is still held, and both have the bytes that they had."""
    former = Server(tmp_path / "server").wait_until_ready()
    with former.client() as client:
        owner = client.create_session(60.0, owner_key="engine")
        blocks = owner.allocate_blocks(2)
        owner.write_blocks(blocks, random.Random(1).randbytes(2 * IMAGE_BYTES))
        written = owner.read_images(blocks)
        owner.commit_blocks(blocks[:1], prefix_hashes=[b"prefix"], boundary_tokens=[16], written_through_tokens=[16])
        former.process.kill()
        former.wait()
    server = Server(tmp_path / "server").wait_until_ready()
    with server.client() as client:
        other = client.create_session(60.0)
        theirs = other.allocate_blocks(CAPACITY - 2)
        hit = other.lookup_prefix([b"prefix"])
        heir = client.create_session(60.0, owner_key="engine", take_over=True)

        assert heir.taken_over
        assert hit is not None
        assert hit.block == blocks[:1]
        assert not np.intersect1d(theirs.block_ids, blocks.block_ids).size
        assert np.array_equal(heir.read_images(blocks), written)
        with pytest.raises(PoolExhaustedError):
            other.allocate_blocks(1)
    server.stop()


def test_a_read_is_never_of_another_s_bytes(client: Client, stubs: Stubs, session: Session) -> None:
    """A read that outlives its session gets the bytes that it asked for, or an error: never a reused block's."""
    theirs = client.create_session(60.0)
    blocks = theirs.allocate_blocks(4)
    theirs.write_blocks(blocks, bytes([1]) * 4 * IMAGE_BYTES)
    written = theirs.read_images(blocks).tobytes()
    reading = stubs.blocks.ReadBlocks(block_pb2.ReadBlocksRequest(session=ref_of(theirs), blocks=refs(blocks)))
    first = next(reading)

    theirs.delete()
    with contextlib.suppress(PoolExhaustedError):  # the reader still has them
        mine = session.allocate_blocks(CAPACITY, max_wait=0.2)
        session.write_blocks(mine, bytes([2]) * CAPACITY * IMAGE_BYTES)
    rest = b"".join(chunk.data for chunk in reading)

    assert first.data + rest == written


def test_every_row_has_tests() -> None:
    """Each row of the table names tests, and each of them is there."""
    rows = ROW.findall((Path(__file__).parent / "README.md").read_text(encoding="utf-8"))

    named = [NAME.findall(row) for row in rows]

    assert len(rows) == 17
    assert all(named)
    assert [name for row in named for name in row if not is_there(*name)] == []


def is_there(path: str, test: str) -> bool:
    """Tells whether a file, and a test in it, exist."""
    file = TESTS / path
    if not file.exists() or not test:
        return file.exists()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == test for node in tree.body)
