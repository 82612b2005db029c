"""Guarantee: a server that was killed is continued by the next one on its folder, as far as anything can be proven."""

import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.raw import Stubs, ref_of, refs, refusal_of
from service.servers import BLOCK_TOKENS, CAPACITY, Server, Servers, until
from statepool import (
    BlockRefs,
    Client,
    IncarnationMismatchError,
    OverloadedError,
    QuotaExceededError,
    SessionNotFoundError,
    StatepoolError,
)
from statepool.v1 import block_pb2 as pb
from statepool.v1 import session_pb2, types_pb2
from statepool_server.journal.encoding import decode, encode
from statepool_server.journal.journal import Journal
from statepool_server.recovery import ServerState

LONG = 60.0
SMALL_JOURNAL = ("--max-message-bytes", "64KiB", "--journal-bytes", "5MiB")


@pytest.fixture
def mortal(servers: Servers) -> Iterator[Server]:
    """Starts a server that the test may kill."""
    server = servers.start().wait_until_ready()
    yield server
    server.wait_until_ready()


def _restart(server: Server, *, spoil: "list[Path] | None" = None) -> None:
    server.kill()
    for path in spoil or []:
        content = bytearray(path.read_bytes())
        content[_last_record(content)] ^= 1
        path.write_bytes(content)
    server.start()
    server.wait_until_ready()


def _last_record(segment: bytearray) -> int:
    """Finds a byte of the last record of a segment."""
    return int(np.flatnonzero(np.frombuffer(segment, np.uint8))[-1])


def _commit(client: Client, hashes: list[bytes]) -> tuple[BlockRefs, np.ndarray]:
    """Commits a block per hash, with random states; returns the blocks and their images."""
    with client.create_session(LONG) as session:
        blocks = session.allocate_blocks(len(hashes))
        session.write_blocks(blocks, np.random.default_rng(1).integers(0, 256, (len(hashes), 1024), np.uint8))
        session.commit_blocks(
            blocks,
            prefix_hashes=hashes,
            boundary_tokens=[BLOCK_TOKENS],
            written_through_tokens=[BLOCK_TOKENS],
            namespace="m",
        )
        return blocks, session.read_images(blocks)


def _found(client: Client, hashes: list[bytes]) -> dict[bytes, bytes]:
    """Looks hashes up; returns the images of those that are found."""
    images = {}
    with client.create_session(LONG) as session:
        for value in hashes:
            hit = session.lookup_prefix([value], namespace="m")
            if hit is not None:
                images[value] = session.read_images(hit.block).tobytes()
    return images


def test_committed_blocks(mortal: Server) -> None:
    """What was committed is found again, with the very same bytes, however often the server is killed."""
    hashes = [bytes([i]) * 32 for i in range(5)]
    with mortal.client() as client:
        _, images = _commit(client, hashes)
        for _ in range(3):
            _restart(mortal)

            assert _found(client, hashes) == dict(zip(hashes, map(bytes, images), strict=True))

        assert client.get_pool().usage.evictable_blocks == 5


def test_a_call_that_is_sent_again(mortal: Server, stubs_of_mortal: Stubs) -> None:
    """A request id that was used before the restart is answered as before, and nothing happens twice."""
    stubs = stubs_of_mortal
    with mortal.client() as client:
        session = client.create_session(LONG)
        request = pb.AllocateBlocksRequest(session=ref_of(session), request_id="one", count=3)
        before = stubs.blocks.AllocateBlocks(request)

        _restart(mortal)

        request.session.incarnation = client.get_pool().incarnation
        after = stubs.blocks.AllocateBlocks(request)
        assert after.blocks == before.blocks
        assert after.incarnation == client.get_pool().incarnation != before.incarnation
        assert client.get_pool().usage.held_blocks == 3


def test_sessions_have_time_to_come_back(servers: Servers) -> None:
    """A lease that ended while there was no server is good for the grace time; then it ends."""
    server = servers.start("--recovery-grace", "3s").wait_until_ready()
    with server.client() as client:
        with grpc.insecure_channel(server.target) as channel:  # nobody renews the lease
            opening = session_pb2.CreateSessionRequest(ttl=Duration(seconds=1))
            session = Stubs(channel).sessions.CreateSession(opening).session
            Stubs(channel).blocks.AllocateBlocks(pb.AllocateBlocksRequest(session=session.ref, count=2))
        server.kill()
        time.sleep(1.0)  # the lease ends
        server.start()
        server.wait_until_ready()

        with_grace = client.get_pool().usage
        until(lambda: client.get_pool().usage.sessions == 0, "the lease to end")

        assert (with_grace.sessions, with_grace.held_blocks) == (1, 2)
        assert client.get_pool().usage.free_blocks == CAPACITY


def test_refs_of_the_process_before(mortal: Server, stubs_of_mortal: Stubs) -> None:
    """A call that names the process before is refused: its client must know that there was a restart."""
    with mortal.client() as client:
        session = client.create_session(LONG)
        blocks = session.allocate_blocks(1)
        former = ref_of(session)

        _restart(mortal)

        request = pb.FreeBlocksRequest(session=former, blocks=refs(blocks))
        assert isinstance(refusal_of(lambda: stubs_of_mortal.blocks.FreeBlocks(request)), IncarnationMismatchError)


def test_journals_are_shortened(servers: Servers) -> None:
    """A journal that has been through many snapshots tells the same story, in files of bounded size."""
    server = servers.start(*SMALL_JOURNAL).wait_until_ready()
    with server.client() as client, client.create_session(LONG, owner_key="x", resume_within=LONG) as session:
        blocks = session.allocate_blocks(4)
        batch = BlockRefs.concat([blocks[:1]] * 1000)
        for _ in range(300):
            session.retain_blocks(batch)
            session.free_blocks(batch)
        numbers = [int(path.stem.partition("-")[2]) for path in server.state_dir.glob("snapshot-*.bin")]

        _restart(server)

        session.free_blocks(blocks)
        assert min(numbers) >= 3
        assert client.get_pool().usage.free_blocks == CAPACITY
        assert len(list(server.state_dir.glob("segment-*"))) == 1


def test_a_damaged_journal(mortal: Server) -> None:
    """The last record cannot be read: what it did is unknown, so only what it cannot have touched is kept."""
    kept, reused = [b"a" * 32, b"b" * 32], [b"c" * 32]
    with mortal.client() as client:
        session = client.create_session(LONG, owner_key="x")
        _, images = _commit(client, kept)
        _commit(client, reused)
        session.evict_blocks(prefix_hashes=reused, namespace="m")  # the last that is known of the block

        _restart(mortal, spoil=list(mortal.state_dir.glob("segment-*")))

        found = _found(client, [*kept, *reused])
        usage = client.get_pool().usage
        with pytest.raises(StatepoolError):
            session.allocate_blocks(1)
        assert found == dict(zip(kept, map(bytes, images), strict=True))
        assert (usage.sessions, usage.free_blocks + usage.evictable_blocks) == (0, CAPACITY)
    assert "journal is damaged" in mortal.log


def test_nobody_goes_on_after_damage(mortal: Server, stubs_of_mortal: Stubs) -> None:
    """Sessions of a damaged journal cannot be resumed, and their ids are not given out again."""
    with mortal.client() as client:
        session = client.create_session(LONG)
        session.allocate_blocks(1)
        former = ref_of(session)
        _restart(mortal, spoil=list(mortal.state_dir.glob("segment-*")))

        answers = stubs_of_mortal.sessions.KeepAlive(iter([session_pb2.KeepAliveRequest(sessions=[former])]))

        assert next(answers).results[0].error.reason == "INCARNATION_MISMATCH"
        current = types_pb2.SessionRef(
            session_id=former.session_id, epoch=former.epoch, incarnation=client.get_pool().incarnation
        )
        request = pb.AllocateBlocksRequest(session=current, count=1)
        refusal = refusal_of(lambda: stubs_of_mortal.blocks.AllocateBlocks(request))
        assert isinstance(refusal, SessionNotFoundError) or refusal.reason == "SESSION_EXPIRED"
        assert client.create_session(LONG).session_id > former.session_id + 1


@pytest.mark.parametrize("lost", ["snapshot-*", "rank1.arena", "segment-*"])
def test_a_missing_file(mortal: Server, lost: str) -> None:
    """Without its memory or its state a server begins anew, with every block blank; with no segment all may differ."""
    with mortal.client() as client:
        _commit(client, [b"a" * 32])
        mortal.kill()
        for path in mortal.state_dir.glob(lost):
            path.unlink()
        mortal.start()
        mortal.wait_until_ready()

        usage = client.get_pool().usage
        assert (usage.sessions, usage.free_blocks) == (0, CAPACITY)
        with client.create_session(LONG) as session:
            blocks = session.allocate_blocks(CAPACITY)
            assert not session.read_images(blocks).any()


def test_lower_limits(servers: Servers) -> None:
    """What was granted within the limits of then is not lost under lower ones: they hold for what comes."""
    server = servers.start("--max-sessions", "4", "--max-batch", "64").wait_until_ready()
    with server.client() as client:
        sessions = [client.create_session(LONG) for _ in range(4)]
        for session in sessions:
            session.allocate_blocks(3)

        server.kill()
        server.start("--max-sessions", "2", "--max-batch", "2")
        server.wait_until_ready()

        usage = client.get_pool().usage
        assert (usage.sessions, usage.held_blocks) == (4, 12)
        with pytest.raises(QuotaExceededError):
            client.create_session(LONG)


OTHER_POOLS = {
    ("--blocks", "9", "--block-tokens", "32"): (
        f": --blocks: {CAPACITY + 1} there, 9 here; --block-tokens: {BLOCK_TOKENS} there, 32 here; give"
    ),
    ("--conv-layout", "DS"): ": model, dtypes or conv layout: ",
    ("--device", "cuda:0"): ": --device: cpu there, cuda:0 here; give",
}


@pytest.mark.parametrize("flags", OTHER_POOLS)
def test_another_pool(servers: Servers, flags: tuple[str, ...]) -> None:
    """A server of another pool does not start on the folder: it says what differs, and the state is still there."""
    server = servers.start().wait_until_ready()
    hashes = [b"a" * 32]
    with server.client() as client:
        _, images = _commit(client, hashes)
        server.stop()

        other = servers.start(*flags, "--state-dir", str(server.state_dir))
        code = other.wait()

        assert code == 1
        told = other.log.splitlines()[-1]
        assert OTHER_POOLS[flags] in told
        assert "--discard-state" in told
        heir = servers.start("--state-dir", str(server.state_dir), listen=server.target).wait_until_ready()
        assert _found(client, hashes) == {hashes[0]: bytes(images[0])}
        heir.stop()


def test_another_pool_that_may_take_the_place(servers: Servers) -> None:
    """With --discard-state a server of another pool begins anew, and says so; the same pool goes on all the same."""
    server = servers.start().wait_until_ready()
    with server.client() as client:
        _commit(client, [b"a" * 32])
        server.stop()

        other = servers.start("--blocks", "9", "--state-dir", str(server.state_dir), "--discard-state", "")
        with other.wait_until_ready().client() as theirs:
            assert theirs.get_pool().usage.free_blocks == 8
            _commit(theirs, [b"b" * 32])
        assert "another pool" in other.log
        other.stop()

        other.start()
        with other.wait_until_ready().client() as theirs:
            assert theirs.get_pool().usage.evictable_blocks == 1
        other.kill()


def test_the_state_of_another_version(servers: Servers) -> None:
    """A server that cannot read what another version has written begins anew, and says so."""
    server = servers.start().wait_until_ready()
    with server.client() as client:
        _commit(client, [b"a" * 32])
        server.stop()
        journal = Journal(server.state_dir, 2**20)
        history = journal.read()
        assert history is not None
        assert history.snapshot is not None
        state = decode(history.snapshot, ServerState)
        former = replace(state, identity=replace(state.identity, format=state.identity.format - 1))
        journal.begin(history.incarnation, encode(former))
        journal.close()

        heir = servers.start("--state-dir", str(server.state_dir), listen=server.target).wait_until_ready()

        assert client.get_pool().usage.evictable_blocks == 0
        assert "another version" in heir.log
        heir.stop()


def test_a_stopped_server_is_continued(servers: Servers) -> None:
    """A planned restart loses as little as a crash."""
    server = servers.start().wait_until_ready()
    with server.client() as client:
        hashes = [b"a" * 32]
        _, images = _commit(client, hashes)
        server.stop()
        heir = servers.start("--state-dir", str(server.state_dir), listen=server.target).wait_until_ready()
        assert _found(client, hashes) == {hashes[0]: bytes(images[0])}
        heir.stop()


def test_a_full_file_system(servers: Servers) -> None:
    """Requests are refused with a hint before the journal is full; leases live on, and so does the server."""
    server = servers.start(*SMALL_JOURNAL).wait_until_ready()
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (2 * 2**20, unlimited[1]))
    with server.client() as client, client.create_session(1.0, owner_key="x") as session:
        batch = BlockRefs.concat([session.allocate_blocks(1)] * 1000)

        def exhaust() -> OverloadedError:
            while True:
                try:
                    session.retain_blocks(batch, timeout=0.5)
                except OverloadedError as error:
                    return error

        refusal = exhaust()
        until(lambda: not _serves(server), "health to tell")
        with pytest.raises(OverloadedError):
            session.retain_blocks(batch, timeout=3.0)  # longer than the lease
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
        session.retain_blocks(batch)
        server.wait_until_ready()

        assert refusal.retry_after is not None
        assert session.error is None
    server.stop()


def _serves(server: Server) -> bool:
    with grpc.insecure_channel(server.target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10.0)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_full_file_system_at_the_end(servers: Servers) -> None:
    """A server that has no room for a last snapshot ends as it should, and the next one goes on all the same."""
    server = servers.start(*SMALL_JOURNAL).wait_until_ready()
    with server.client() as client:
        session = client.create_session(LONG, owner_key="x")
        blocks = session.allocate_blocks(2)
        unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (2 * 2**20, unlimited[1]))
        server.terminate()
        code = server.wait()
        server.start()
        server.wait_until_ready()
        heir = client.create_session(LONG, owner_key="x", take_over=True)

        assert code == 0
        assert heir.taken_over
        heir.free_blocks(blocks)
    server.stop()


@pytest.fixture
def stubs_of_mortal(mortal: Server) -> Iterator[Stubs]:
    """Makes stubs of a server that is started again at the same address."""
    with grpc.insecure_channel(mortal.target) as channel:
        yield Stubs(channel)
