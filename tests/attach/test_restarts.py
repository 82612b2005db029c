"""Guarantee: attached processes keep their mapping while there is no server, and the next server knows them again."""

import contextlib

import numpy as np

from attach.workers import Workers
from service.servers import CAPACITY, Server, Servers, until
from statepool import Client, UnavailableError

LONG = 60.0


def _restart(server: Server) -> None:
    server.kill()
    server.start()
    server.wait_until_ready()


def _is_connected(client: Client) -> bool:
    with contextlib.suppress(UnavailableError):  # the budget of retries may be used up
        return [row.is_connected for row in client.list_attachments()] == [True]
    return False


def test_the_same_memory(lone: Server, workers: Workers) -> None:
    """What a worker writes after the restart is what the new server reads, and it is the same attachment."""
    with lone.client() as client, client.create_session(LONG, resume_within=LONG) as session:
        blocks = session.allocate_blocks(1)
        worker, before = workers.start(lone, reattach_within=LONG), client.get_pool().incarnation
        who, block = (session.session_id, session.epoch), int(blocks.block_ids[0])
        for value in (3, 4):
            worker.ask("begin", *who)
            worker.ask("fill", block, value)
            worker.ask("end")
            _restart(lone)
            until(lambda: _is_connected(client), "the worker")

            image = session.read_images(blocks)
            assert set(np.unique(image)) <= {0, value}
            assert (image == value).sum() > 300
        assert [row.attachment_id for row in client.list_attachments()] == [worker.attachment_id]
        assert worker.ask("incarnation") == client.get_pool().incarnation != before


def test_a_pass_waits_for_the_server(lone: Server, workers: Workers) -> None:
    """A pass that would begin while there is no server begins when the worker is known again."""
    with lone.client() as client, client.create_session(LONG, resume_within=LONG) as session:
        worker = workers.start(lone, reattach_within=LONG)
        lone.kill()
        worker.send("begin", session.session_id, session.epoch)
        lone.start()

        assert worker.hear() == ""
        assert client.get_pool().incarnation == worker.ask("incarnation")


def test_a_fence_outlives_the_server(lone: Server, workers: Workers) -> None:
    """Blocks that a pass may still write stay in quarantine over the restart, until the pass has ended."""
    with lone.client() as client:
        session = client.create_session(LONG)
        session.allocate_blocks(3)
        worker = workers.start(lone, reattach_within=LONG)
        worker.ask("begin", session.session_id, session.epoch)
        session.delete()

        _restart(lone)
        until(lambda: _is_connected(client), "the worker")
        in_pass = client.get_pool().usage.quarantined_blocks
        worker.ask("end")

        until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the blocks")
        assert in_pass == 3


def test_a_death_without_a_server(lone: Server, workers: Workers) -> None:
    """A worker that dies while there is no server is detached by the next one, and what it held back is free."""
    with lone.client() as client:
        session = client.create_session(LONG)
        session.allocate_blocks(3)
        worker = workers.start(lone, reattach_within=LONG)
        worker.ask("begin", session.session_id, session.epoch)
        session.delete()
        lone.kill()
        worker.end()
        lone.start()
        lone.wait_until_ready()

        until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the blocks")
        assert client.list_attachments() == []
    assert list(lone.state_dir.glob("attached-*")) == []


def test_a_server_that_knows_nobody(servers: Servers, workers: Workers) -> None:
    """A server that began anew does not know the worker: no pass begins any more, at once."""
    server = servers.start("--no-recovery", "").wait_until_ready()
    worker = workers.start(server, reattach_within=LONG)

    _restart(server)

    until(lambda: bool(worker.ask("why")), "the loss")
    assert worker.ask("why") == "ATTACHMENT_NOT_FOUND"
    server.stop()


def test_a_connection_that_broke(lone: Server, workers: Workers) -> None:
    """It needs no restart: a worker whose connection broke connects again, as the same attachment."""
    with lone.client() as client:
        worker = workers.start(lone, reattach_within=LONG)

        worker.ask("hang_up")

        until(lambda: "attached again" in lone.log, "the worker")
        until(lambda: _is_connected(client), "the connection")
        assert [row.attachment_id for row in client.list_attachments()] == [worker.attachment_id]


def test_a_pass_for_a_session_of_another_server(servers: Servers) -> None:
    """A scheduler that has missed that its server began anew has no pass run on blocks that are somebody else's now."""
    server = servers.start("--no-recovery", "").wait_until_ready()
    with server.client() as client:
        session = client.create_session(60.0)
        former = session.session_id, session.epoch
    server.kill()
    server.start()
    server.wait_until_ready()

    with server.client() as client, client.create_session(60.0) as session, Workers() as workers:
        worker = workers.start(server)
        late = worker.ask("begin", *former)
        own = worker.ask("begin", session.session_id, session.epoch)

    assert (late, own) == ("SessionFencedError", "")
