"""Guarantee: what comes over NIXL is what was lent, or nothing; whatever fails, both servers go on without a leak."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from service.servers import CAPACITY, DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    Admission,
    BlockRefs,
    ChecksumMismatchError,
    Client,
    Commits,
    DataPath,
    FeatureUnavailableError,
    PeerLostError,
    Schedules,
    Session,
    StatepoolError,
    Transfer,
    TransferNotFoundError,
)
from statepool_server.nixl_agent import nixl_package
from transfer.conftest import FLAGS, STANDING_COPY, WIDE, copying
from transfer.images import Images, fill, images
from transfer.liar import Lie, liar

pytestmark = pytest.mark.skipif(nixl_package() is None, reason="NIXL is not installed")

LONG = 60.0
BLOCKS = 4
NIXL = (*FLAGS, "--nixl-devices", "lo")
TCP = {"UCX_TLS": "tcp"}
"""As between machines; else UCX copies between processes of one machine, at once."""
PAUSE = {"STATEPOOL_FAILPOINTS": "nixl.read=1*sleep(3000)"}
"""Time for a test to do something to the source before the destination's first read."""


@pytest.fixture
def over() -> dict[str, str]:
    """Tells the environment of both servers."""
    return TCP


@pytest.fixture
def pause() -> dict[str, str]:
    """Tells what else is in that of the destination."""
    return {}


@pytest.fixture
def lending() -> dict[str, str]:
    """Tells what else is in that of the source."""
    return {}


@pytest.fixture
def data_path() -> str:
    """Tells which ways the destination may take."""
    return "auto"


@pytest.fixture
def patience() -> str:
    """Tells how long the destination waits for a source."""
    return "20s"


@pytest.fixture
def source(servers: Servers, over: dict[str, str], lending: dict[str, str]) -> Server:
    """Starts a source that a test may kill."""
    return servers.start(*NIXL, conv_shape=WIDE, environment=over | lending).wait_until_ready()


@pytest.fixture
def destination(servers: Servers, over: dict[str, str], pause: dict[str, str], data_path: str, patience: str) -> Server:
    """Starts a destination that a test may kill."""
    flags = (*NIXL, "--stall-timeout", patience, "--data-path", data_path)
    return servers.start(*flags, conv_shape=WIDE, environment=over | pause).wait_until_ready()


@pytest.fixture
def lender(source: Server) -> Iterator[Session]:
    """Opens a session at the source, which lives on over its restarts."""
    with source.client() as client, client.create_session(LONG, resume_within=LONG) as session:
        yield session


@pytest.fixture
def taker(destination: Server) -> Iterator[Session]:
    """Opens a session at the destination, which lives on over its restarts."""
    with destination.client() as client, client.create_session(LONG, resume_within=LONG) as session:
        yield session


@pytest.fixture
def blocks(lender: Session) -> BlockRefs:
    """Allocates what is lent."""
    return lender.allocate_blocks(BLOCKS)


@pytest.fixture
def expected(source: Server, lender: Session, blocks: BlockRefs) -> Images:
    """Fills the blocks."""
    with source.client() as client:
        return fill(lender, blocks, client.get_pool())


def _metric(server: Server, name: str, **labels: str) -> float:
    with server.client() as client:
        return client.get_metrics().total(name, **labels)


def _is_clean(server: Server, held: int = 0) -> bool:
    with server.client() as client:
        usage = client.get_pool().usage
    return (usage.busy_blocks, usage.releasing_blocks, usage.held_blocks) == (0, 0, held)


def _assert_nothing_is_left(server: Server, held: int = 0) -> None:
    until(lambda: _is_clean(server, held), "pins and blocks to go")
    assert _metric(server, "statepool_nixl_reads") == 0
    with server.client() as client:
        assert not list(client.list_transfers())


def _assert_it_works(lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images) -> None:
    """Proves that a transfer comes over NIXL, to the byte."""
    received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)
    assert (received.data_path, received.nbytes) == (DataPath.NIXL, expected.nbytes)
    assert np.array_equal(images(taker, received.blocks), expected)
    taker.free_blocks(received.blocks)


def _assert_it_works_again(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Proves the same of a source that was restarted: gRPC takes a moment to find it."""

    def came() -> DataPath | None:
        try:
            received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)
        except PeerLostError:
            return None
        taker.free_blocks(received.blocks)
        return received.data_path

    until(lambda: came() is DataPath.NIXL, "the source to be found again")
    _assert_it_works(lender, taker, source, blocks, expected)


# Whole


@pytest.mark.parametrize("over", [{}, TCP])
@pytest.mark.parametrize("data_path", ["auto", "nixl"])
def test_states_arrive(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Both ranks' bytes arrive, again and again, into any blocks, and the source is told; numbers show the way."""
    spare = taker.allocate_blocks(3)
    for rows in ([0, 1, 2, 3], [2], [3, 0]):
        chosen = blocks[np.array(rows)]
        _assert_it_works(lender, taker, source, chosen, expected[:, rows])
    assert _metric(destination, "statepool_received_transfers_total", data_path="nixl") == 3
    assert _metric(destination, "statepool_received_bytes_total", data_path="nixl") == 7 / 4 * expected.nbytes
    for server in (source, destination):
        assert _metric(server, "statepool_copied_bytes_total", kind="checksum") == 7 / 4 * expected.nbytes
    assert not _metric(destination, "statepool_data_path_failures_total")
    taker.free_blocks(spare)
    _assert_nothing_is_left(source, held=BLOCKS)
    _assert_nothing_is_left(destination)


def test_committed_states_with_checksums(servers: Servers, expected: Images, lender: Session, source: Server) -> None:
    """What has come is found, and the destination's own checksums agree with it."""
    flags = (*NIXL, "--checksums", "lookup")
    other = servers.start(*flags, conv_shape=WIDE, environment=TCP).wait_until_ready()
    with source.client() as client, other.client() as there, there.create_session(LONG) as session:
        held = next(client.list_blocks(session_id=lender.session_id)).blocks
        received = session.receive_transfer(lender.create_transfer(held), source=source.target)
        one = received.blocks[:1]
        session.commit_blocks(one, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)
        hit = session.lookup_prefix([b"h"])
        assert hit is not None
        assert np.array_equal(images(session, hit.block), expected[:, :1])


@pytest.mark.parametrize("end", [Client.cancel_transfer, Client.complete_transfer])
def test_the_source_rests(lender: Session, source: Server, blocks: BlockRefs, end: Callable[..., object]) -> None:
    """A source looks for readers as fast as it can while it lends, and no longer, whether or not they have read."""
    process = psutil.Process(source.process.pid)

    def busy() -> float:
        """Tells what the process takes of a core."""
        process.cpu_percent()
        return process.cpu_percent(1.0)

    with source.client() as client:
        transfer = lender.create_transfer(blocks)
        client.describe_transfer(transfer)
        lending = busy()
        end(client, transfer)
        assert busy() < lending / 2


# Choice


@pytest.mark.parametrize(("data_path", "way"), [("grpc", DataPath.GRPC), ("auto", DataPath.NIXL)])
def test_the_way_is_chosen(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images, way: DataPath
) -> None:
    """NIXL where both have it, unless another way was asked for."""
    received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)
    assert received.data_path is way
    assert np.array_equal(images(taker, received.blocks), expected)


@pytest.mark.parametrize("data_path", ["auto", "nixl"])
def test_a_source_without_nixl(servers: Servers, taker: Session, data_path: str) -> None:
    """It is pulled from over gRPC; where NIXL alone may be used, the caller is told."""
    plain = servers.shared(*FLAGS, conv_shape=WIDE)
    with plain.client() as client, client.create_session(LONG) as session:
        blocks = session.allocate_blocks(1)
        expected = fill(session, blocks, client.get_pool())
        transfer = session.create_transfer(blocks)
        with pytest.raises(FeatureUnavailableError):
            client.describe_transfer(transfer)
        if data_path == "nixl":
            with pytest.raises(FeatureUnavailableError):
                taker.receive_transfer(transfer, source=plain.target)
            client.cancel_transfer(transfer)
            return
        received = taker.receive_transfer(transfer, source=plain.target)
    assert received.data_path is DataPath.GRPC
    assert np.array_equal(images(taker, received.blocks), expected)


def test_a_state_in_two_blocks(lender: Session, taker: Session, source: Server, destination: Server) -> None:
    """A state that must be put together first comes over gRPC."""
    lender.step(1, admit=[Admission(7, 40)])
    lender.step(2, schedule=Schedules([7], 40))
    lender.step(3, commit=Commits([7], 1))
    lender.step(4, schedule=Schedules([7], 3, 2))
    lender.step(5, commit=Commits([7], 2))
    received = taker.receive_transfer(lender.create_transfer(sequence_id=7), source=source.target)
    assert received.data_path is DataPath.GRPC
    assert _metric(destination, "statepool_data_path_failures_total", reason="unavailable") == 1


# Lies


def _damage(response: Any) -> None:
    response.agent.metadata = response.agent.metadata[:-9] + bytes(9)


def _truncate(response: Any) -> None:
    import hashlib

    response.agent.metadata = response.agent.metadata[:20]
    response.agent.metadata_sha256 = hashlib.sha256(response.agent.metadata).digest()


def _rename(response: Any) -> None:
    response.agent.name = "another"


def _point_beyond(response: Any) -> None:
    response.block_ids[0] = CAPACITY + 1


def _point_at_null(response: Any) -> None:
    response.block_ids[0] = 0


def _point_nowhere(response: Any) -> None:
    for region in response.agent.regions:
        region.address = 4096


def _boast(response: Any) -> None:
    for region in response.agent.regions:
        region.block_count = 2**32 - 1


def _take_all_regions(response: Any) -> None:
    del response.agent.regions[:]


def _shorten(response: Any) -> None:
    del response.block_ids[1:]


def _take_a_rank(response: Any) -> None:
    del response.agent.regions[1:]


_POINTS = [_point_beyond, _point_at_null, _point_nowhere]
_LIES = [_damage, _truncate, _rename, *_POINTS, _boast, _shorten, _take_a_rank, _take_all_regions]


@pytest.mark.parametrize("over", [{}])
@pytest.mark.parametrize(("lie", "data_path"), [*((lie, "auto") for lie in _LIES), (_damage, "nixl")])
def test_bad_descriptions(
    lender: Session,
    taker: Session,
    source: Server,
    destination: Server,
    blocks: BlockRefs,
    expected: Images,
    tmp_path: Path,
    lie: Lie,
    data_path: str,
) -> None:
    """Whatever a source tells of its memory, nothing but the states arrives, and the agents go on working."""
    transfer = lender.create_transfer(blocks)
    with liar(tmp_path, source.target, DescribeTransfer=lie) as target:
        if data_path == "nixl":
            with pytest.raises(PeerLostError, match=r"NIXL, (bad_descriptor|peer_gone)"):
                taker.receive_transfer(transfer, source=target)
        else:
            received = taker.receive_transfer(transfer, source=target)
            assert received.data_path is DataPath.GRPC
            assert np.array_equal(images(taker, received.blocks), expected)
            taker.free_blocks(received.blocks)
    assert _metric(destination, "statepool_data_path_failures_total", data_path="nixl") == 1
    _assert_it_works(lender, taker, source, blocks, expected)
    _assert_nothing_is_left(destination)


@pytest.mark.parametrize(("data_path", "way"), [("auto", DataPath.GRPC), ("nixl", None)])
def test_other_bytes_than_were_sent(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images, tmp_path: Path, way: object
) -> None:
    """Checksums that differ after the read are noticed, and other blocks are filled over gRPC."""

    def lie(response: Any) -> None:
        response.checksums[-1] ^= 1

    transfer = lender.create_transfer(blocks)
    with liar(tmp_path, source.target, SumTransfer=lie) as target:
        if way is None:
            with pytest.raises(ChecksumMismatchError):
                taker.receive_transfer(transfer, source=target)
        else:
            received = taker.receive_transfer(transfer, source=target)
            assert received.data_path is way
            assert np.array_equal(images(taker, received.blocks), expected)


# Deaths


def _receive(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, meanwhile: Callable[[Transfer], None]
) -> Any:
    """Begins a reception, does something while the destination is about to read, and waits for the end."""

    def described() -> float:
        return _metric(source, "statepool_rpcs_total", method="DescribeTransfer")

    before, transfer = described(), lender.create_transfer(blocks)
    with ThreadPoolExecutor(1) as executor:
        receiving = executor.submit(taker.receive_transfer, transfer, source=source.target, timeout=DEADLINE_SECONDS)
        until(lambda: described() > before, "the description")
        meanwhile(transfer)
        return receiving.result()


@pytest.mark.parametrize("data_path", ["nixl"])
@pytest.mark.parametrize("pause", [PAUSE])
def test_the_source_is_killed(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """A source that dies before it was connected to is given up; its next process, another agent, is read from."""
    with pytest.raises(PeerLostError, match=r"NIXL, (peer_gone|timeout)"):
        _receive(lender, taker, source, blocks, lambda _transfer: source.kill())
    _assert_nothing_is_left(destination)

    source.start()
    source.wait_until_ready()
    _assert_it_works_again(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("data_path", ["nixl"])
@pytest.mark.parametrize("pause", [{"STATEPOOL_FAILPOINTS": "nixl.read=1+1*sleep(3000)"}])
def test_a_connected_source_is_killed(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """The death of a source that was read from before is noticed at once, by the read itself."""
    _assert_it_works(lender, taker, source, blocks, expected)
    with pytest.raises(PeerLostError, match="NIXL, peer_gone"):
        _receive(lender, taker, source, blocks, lambda _transfer: source.kill())
    assert _metric(destination, "statepool_data_path_failures_total", reason="peer_gone") == 1
    _assert_nothing_is_left(destination)

    source.start()
    source.wait_until_ready()
    _assert_it_works_again(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("pause", [PAUSE])
def test_the_source_comes_back(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """A source that was restarted in the middle of a read lends on, and gives the rest over gRPC."""

    def restart(_transfer: Transfer) -> None:
        source.kill()
        source.start()
        source.wait_until_ready()

    received = _receive(lender, taker, source, blocks, restart)
    assert received.data_path is DataPath.GRPC
    assert np.array_equal(images(taker, received.blocks), expected)


@pytest.mark.parametrize("pause", [PAUSE])
def test_the_destination_is_killed(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Its next process frees what was to be filled and answers the same call; the source has noticed nothing."""

    def restart(_transfer: Transfer) -> None:
        destination.kill()
        destination.start()
        destination.wait_until_ready()

    received = _receive(lender, taker, source, blocks, restart)
    assert np.array_equal(images(taker, received.blocks), expected)
    taker.free_blocks(received.blocks)
    _assert_nothing_is_left(destination)
    _assert_nothing_is_left(source, held=BLOCKS)
    _assert_it_works(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("pause", [PAUSE])
def test_the_lease_ends_before_the_read(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs
) -> None:
    """What is read after the end of the lease, and may be anything, is thrown away."""

    def end(transfer: Transfer) -> None:
        with source.client() as client:
            client.cancel_transfer(transfer)
        lender.write_blocks(blocks, np.zeros((BLOCKS, 100), np.uint8))

    with pytest.raises(TransferNotFoundError, match="was cancelled"):
        _receive(lender, taker, source, blocks, end)
    _assert_nothing_is_left(destination)


@pytest.mark.parametrize("pause", [PAUSE])
def test_the_session_ends_before_the_read(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs
) -> None:
    """A session that was deleted gets nothing, and its blocks are free when the read has ended, not before."""

    def end(_transfer: Transfer) -> None:
        taker.delete()
        assert not _is_clean(destination)

    with pytest.raises(StatepoolError):
        _receive(lender, taker, source, blocks, end)
    _assert_nothing_is_left(destination)


def test_the_destination_cannot_take_sums(
    servers: Servers, over: dict[str, str], lender: Session, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Its own memory work, which has no room for a moment, is not taken for a source that is gone."""
    flags = (*NIXL, "--max-queued-copies", "1")
    destination = servers.start(*flags, conv_shape=WIDE, environment=over | STANDING_COPY).wait_until_ready()
    with destination.client() as client, client.create_session(LONG) as taker, copying(destination):
        _assert_it_works(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("patience", ["1s"])
@pytest.mark.parametrize("pause", [{"STATEPOOL_FAILPOINTS": "nixl.read=error"}])
def test_the_thread_dies(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """What moves states over NIXL does not die in silence: the server says so, and gRPC goes on."""
    received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)

    assert received.data_path is DataPath.GRPC
    assert np.array_equal(images(taker, received.blocks), expected)
    with destination.client() as client:
        assert client.get_server_info().background["nixl"].startswith("FailpointError")
    taker.receive_transfer(lender.create_transfer(blocks), source=source.target)
    assert _metric(destination, "statepool_data_path_failures_total", data_path="nixl") == 1  # it is not tried any more
    assert not _metric(destination, "statepool_ready")
    taker.delete()
    destination.kill()  # its log tells of the death, as none may of a server that ends well


# Frozen peers


@pytest.mark.parametrize("patience", ["2s"])
@pytest.mark.parametrize("lending", [{"STATEPOOL_FAILPOINTS": "nixl.lend=1*sleep(6000)"}])
def test_an_agent_that_stands_still(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Other blocks are filled over gRPC; those of the read that has not ended are nobody's until it has."""
    received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)

    assert received.data_path is DataPath.GRPC
    assert _metric(destination, "statepool_data_path_failures_total", reason="timeout") == 1
    assert _metric(destination, "statepool_nixl_reads") == 1
    with destination.client() as client:
        usage = client.get_pool().usage
        assert (usage.busy_blocks, usage.free_blocks) == (BLOCKS, CAPACITY - 2 * BLOCKS)
    until(lambda: _metric(destination, "statepool_nixl_reads") == 0, "the late bytes")
    until(lambda: _is_clean(destination, held=BLOCKS), "their blocks to be free")
    assert np.array_equal(images(taker, received.blocks), expected)
    _assert_it_works(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("patience", ["5s"])
@pytest.mark.parametrize("pause", [PAUSE])
def test_a_source_that_stands_still(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """The caller hears of it in bounded time, and the blocks come back when the source does."""
    with pytest.raises(PeerLostError):
        _receive(lender, taker, source, blocks, lambda _transfer: source.process.send_signal(signal.SIGSTOP))
    with destination.client() as client:
        assert client.get_pool().usage.busy_blocks == BLOCKS
    source.process.send_signal(signal.SIGCONT)

    until(lambda: _is_clean(destination), "the late bytes")
    _assert_it_works(lender, taker, source, blocks, expected)


@pytest.mark.parametrize("patience", ["5s"])
@pytest.mark.parametrize("pause", [PAUSE])
def test_a_source_that_dies_standing_still(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """Its death settles what had not ended; its next process is another agent."""
    with pytest.raises(PeerLostError):
        _receive(lender, taker, source, blocks, lambda _transfer: source.process.send_signal(signal.SIGSTOP))
    source.kill()
    source.start()
    source.wait_until_ready()

    until(lambda: _is_clean(destination), "the blocks to be free")
    _assert_it_works_again(lender, taker, source, blocks, expected)


# Flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data-path", "nixl"), "nixl-devices must say"),
        (("--nixl-devices", "lo", "--arrangement", "layer_major"), "block_major"),
        (("--nixl-devices", "nosuchdevice"), "nosuchdevice"),
    ],
)
def test_what_cannot_be(servers: Servers, flags: tuple[str, ...], message: str) -> None:
    """A server that could not do what was asked for says so and ends."""
    server = servers.start(*flags)
    assert server.wait() == 1
    assert message in server.log
