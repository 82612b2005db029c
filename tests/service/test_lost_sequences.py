"""Guarantee: a step whose copies fail tells which states are gone; all others go on."""

import copy
from collections.abc import Iterator

import pytest

from service.servers import BLOCK_TOKENS, Server, Servers
from statepool import Admission, Commits, Schedules, StateLostError
from statepool_server.failpoints import VARIABLE

LONG = 60.0
ONE = Schedules([1], [BLOCK_TOKENS])
TWO = Schedules([2], [BLOCK_TOKENS])


@pytest.fixture
def server(servers: Servers) -> Iterator[Server]:
    """Starts a server whose second work with memory fails."""
    server = servers.start(environment={VARIABLE: "copy=1+1*error"}).wait_until_ready()
    yield server
    server.terminate()
    assert server.wait() == 0


def admission(sequence_id: int) -> Admission:
    """Admits a sequence that starts from nothing."""
    return Admission(sequence_id, 4 * BLOCK_TOKENS)


def found(sequence_id: int) -> Commits:
    """Commits the first block of a sequence under a hash."""
    return Commits([sequence_id], [1], hash_rows=[0], boundary_tokens=[BLOCK_TOKENS], prefix_hashes=[b"hash"])


def test_others_go_on(server: Server) -> None:
    """The step counts; the lost sequence is neither scheduled nor committed, and the other one is."""
    with server.client() as client, client.create_session(LONG) as session, session.scheduler() as scheduler:
        scheduler.step(admit=[admission(1)], schedule=ONE)
        with pytest.raises(StateLostError) as lost:
            scheduler.step(admit=[admission(2)], schedule=TWO)
        refusals = []
        for commit in (found(2), Commits([1, 2], [1, 1])):
            with pytest.raises(StateLostError) as refused:
                scheduler.step(commit=commit)
            refusals.append((refused.value.field, refused.value.metadata["row"], refused.value.outcome))
        outcome = scheduler.step(commit=found(1), finish=[2])
        hit = session.lookup_prefix([b"hash"])

        assert lost.value.outcome is not None
        assert (lost.value.sequence_ids, lost.value.outcome.step, len(lost.value.outcome.admissions)) == ((2,), 2, 1)
        assert copy.deepcopy(lost.value).sequence_ids == (2,)
        assert refusals == [("commits.sequence_ids", "0", None), ("commits.sequence_ids", "1", None)]
        assert (outcome.step, outcome.published_blocks) == (3, 1)
        assert hit is not None


def test_two_steps_at_once(server: Server) -> None:
    """A step that was sent behind the one that fails is applied, and its answer is its own."""
    with server.client() as client, client.create_session(LONG) as session, session.scheduler() as scheduler:
        scheduler.step(admit=[admission(1)], schedule=ONE)
        scheduler.send(admit=[admission(2)], schedule=TWO)
        scheduler.send(commit=Commits([1], [1]), schedule=ONE, settled_step=1)
        with pytest.raises(StateLostError) as lost:
            scheduler.receive()
        outcome = scheduler.receive()

    assert lost.value.sequence_ids == (2,)
    assert (outcome.step, outcome.lost_sequence_ids) == (3, ())


def test_after_a_crash(server: Server) -> None:
    """The next server knows what is lost, and tells it again to who asks for the step again."""
    with server.client() as client, client.create_session(LONG, resume_within=LONG) as session:
        session.step(1, admit=[admission(1)], schedule=ONE)
        for restarts in (False, True):
            if restarts:
                server.kill()
                server.start()
                server.wait_until_ready()
            with pytest.raises(StateLostError) as lost:
                session.step(2, admit=[admission(2)], schedule=TWO)
            assert lost.value.sequence_ids == (2,)
        with pytest.raises(StateLostError, match="can only be finished"):
            session.step(3, commit=found(2))
        session.step(3, finish=[1, 2])
