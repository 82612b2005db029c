"""Guarantee: a lost session's blocks are nobody's until every worker's pass for it has ended; no other begins."""

import threading

import pytest

from attach.workers import Workers
from service.servers import CAPACITY, Server, until
from statepool import (
    BlockBusyError,
    BlockRefs,
    ChecksumMismatchError,
    Client,
    Session,
    SessionFencedError,
    StatepoolError,
    UnavailableError,
)
from statepool.torch import attach


def commit(session: Session, blocks: object) -> None:
    """Uses blocks in a way that quarantine refuses."""
    session.commit_blocks(blocks, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)  # type: ignore[arg-type]


def clear(client: Client) -> bool:
    """Tells whether no block is in quarantine."""
    return client.get_pool().usage.quarantined_blocks == 0


def test_take_over_waits_for_the_pass(server: Server, client: Client) -> None:
    """The new owner's blocks are busy, with a hint when to retry, until the former owner's pass has ended."""
    former = client.create_session(60.0, owner_key="scheduler")
    blocks = former.allocate_blocks(1)
    with attach(client) as pool, server.client() as successor:
        with pool.writing(former.session_id, former.epoch):
            session = successor.create_session(60.0, owner_key="scheduler", take_over=True)
            with pytest.raises(BlockBusyError) as refused:
                commit(session, blocks)
            (attached,) = client.list_attachments()
        until(lambda: clear(client), "the worker's answer")

        commit(session, blocks)
        with pytest.raises(SessionFencedError), pool.writing(former.session_id, former.epoch):
            pass
        with pool.writing(session.session_id, session.epoch):
            pass

    assert refused.value.retry_after is not None
    assert attached.unanswered_fences == 1


@pytest.mark.parametrize("end", ["deleted", "expired"])
def test_end_of_a_session_waits_for_the_pass(server: Server, client: Client, session: Session, end: str) -> None:
    """Its blocks are free only when the worker has finished; passes of others do not hold the answer up."""
    with attach(client) as pool, server.client() as owner:
        lost = owner.create_session(60.0 if end == "deleted" else 0.2)
        lost.allocate_blocks(3)
        with pool.writing(session.session_id, session.epoch):
            with pool.writing(lost.session_id, lost.epoch):
                if end == "deleted":
                    lost.delete()
                else:
                    owner._keeper.close()  # noqa: SLF001 — a scheduler that stands still
                until(lambda: client.get_pool().usage.quarantined_blocks == 3, "the quarantine")
                free = client.get_pool().usage.free_blocks
            until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the worker's answer")

    assert free == CAPACITY - 3


def test_readers_are_not_waited_for(client: Client) -> None:
    """With a process that only reads, blocks of a deleted session are free at once."""
    with attach(client, read_only=True):
        session = client.create_session(60.0)
        session.allocate_blocks(3)

        session.delete()

        assert client.get_pool().usage.free_blocks == CAPACITY


def _is_written(session: Session, blocks: BlockRefs) -> bool:
    """Tells whether a block holds anything; what changes while it is read is not what its checksum was taken of."""
    try:
        return bool(next(iter(session.read_blocks(blocks))).data[0] != 0)
    except ChecksumMismatchError:
        return True


def test_take_over_while_a_worker_writes(server: Server, client: Client, workers: Workers) -> None:
    """A worker that writes without a pause stops, and what the new owner writes stays."""
    former = client.create_session(60.0, owner_key="scheduler")
    blocks = former.allocate_blocks(1)
    block = int(blocks.block_ids[0])
    worker = workers.start(server)
    worker.send("write_on", block, former.session_id, former.epoch)
    until(lambda: _is_written(former, blocks), "the worker to write")

    session = client.create_session(60.0, owner_key="scheduler", take_over=True)
    until(lambda: clear(client), "the worker's answer")
    session.write_blocks(blocks, bytes(1024))

    assert worker.hear() == "fenced"
    assert worker.ask("peek", block) == 0
    session.delete()


def test_release_quarantine(server: Server, client: Client, workers: Workers) -> None:
    """An operator who knows better ends quarantine of a worker that does not answer; it stays attached."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    worker = workers.start(server)
    worker.ask("begin", session.session_id, session.epoch)
    session.delete()
    until(lambda: not clear(client), "the quarantine")

    cleared = client.release_quarantine(worker.attachment_id)

    assert (cleared, client.get_pool().usage.free_blocks) == (2, CAPACITY)
    (attached,) = client.list_attachments()
    assert (attached.attachment_id, attached.unanswered_fences) == (worker.attachment_id, 0)
    worker.ask("end")
    assert client.release_quarantine() == 0


def test_detaching_answers_for_all(client: Client) -> None:
    """A process that detaches in the middle of a pass holds nothing back; what it still writes reaches nobody."""
    session = client.create_session(60.0)
    blocks = session.allocate_blocks(1)
    pool = attach(client)
    view = pool.views["layers.0.ssm"]
    with pool.writing(session.session_id, session.epoch):
        session.delete()
        assert not clear(client)

        pool.close()
        view[int(blocks.block_ids[0])] = 9

    assert client.get_pool().usage.free_blocks == CAPACITY
    with client.create_session(60.0) as another:
        again = another.allocate_blocks(CAPACITY, zero=False)
        assert not any(any(chunk.data) for chunk in another.read_blocks(again))
    assert client.list_attachments() == []


def test_lost_server(lone: Server) -> None:
    """A worker learns that the server is gone; no pass begins any more, and what it has mapped stays readable."""
    lost: list[StatepoolError] = []
    told = threading.Event()

    def on_lost(error: StatepoolError) -> None:
        lost.append(error)
        told.set()

    with lone.client() as client:
        session = client.create_session(60.0)
        block = int(session.allocate_blocks(1).block_ids[0])
        pool = attach(client, reattach_within=0.5, on_lost=on_lost)
        pool.views["layers.0.ssm"][block] = 5

        lone.process.kill()
        lone.wait()

        assert told.wait(60.0)
        assert isinstance(pool.error, UnavailableError)
        with pytest.raises(UnavailableError), pool.writing(session.session_id, session.epoch):
            pass
        assert float(pool.views["layers.0.ssm"][block].sum()) == 5 * 32
    pool.close()
    assert len(lost) == 1
