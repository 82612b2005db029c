"""Guarantee: whatever ends a transfer half-way, on whichever side, leaves no block that could be used, and no leak."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.conftest import plain_stubs
from service.raw import ref_of, refusal_of
from service.servers import CAPACITY, DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    BlockRefs,
    DeadlineExceededError,
    PeerLostError,
    Received,
    RequestIdReusedError,
    Session,
    StatepoolError,
    Transfer,
    TransferNotFoundError,
)
from statepool.v1 import transfer_pb2 as pb
from statepool.wire import refs_from_wire
from transfer.conftest import FLAGS, STANDING_COPY, WIDE, copying
from transfer.images import Images, fill, images
from transfer.valve import Valve, valve

LONG = 60.0
BLOCKS = 4
SOME = 2_500_000
"""Bytes after which some chunks have come, and most have not."""


@pytest.fixture
def source(servers: Servers) -> Server:
    """Starts a source that a test may kill."""
    return servers.start(*FLAGS, conv_shape=WIDE).wait_until_ready()


@pytest.fixture
def patience() -> str:
    """Tells how long the destination waits for a source."""
    return "60s"


@pytest.fixture
def destination(servers: Servers, patience: str) -> Server:
    """Starts a destination that a test may kill."""
    return servers.start(*FLAGS, "--stall-timeout", patience, conv_shape=WIDE).wait_until_ready()


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


@pytest.fixture
def between(source: Server, expected: Images, tmp_path: Path) -> Iterator[Valve]:
    """Puts a network in front of the source that stops in the middle of the blocks."""
    with valve(tmp_path, source.socket, SOME) as made:
        yield made


@pytest.fixture
def half_way(
    lender: Session, taker: Session, blocks: BlockRefs, between: Valve
) -> Iterator[tuple[Transfer, "Future[Received]"]]:
    """Begins a reception, and waits until some of the bytes have come."""
    with ThreadPoolExecutor(1) as executor:
        transfer = lender.create_transfer(blocks)
        receiving = executor.submit(taker.receive_transfer, transfer, source=between.target, timeout=DEADLINE_SECONDS)
        between.wait_until_shut()
        yield transfer, receiving


def _assert_nothing_is_left(server: Server, held: int = 0) -> None:
    with server.client() as client:

        def is_clean() -> bool:
            usage = client.get_pool().usage
            return (usage.busy_blocks, usage.releasing_blocks, usage.held_blocks) == (0, 0, held)

        until(is_clean, f"pins and blocks to go: {client.get_pool().usage}")
        assert not list(client.list_transfers())


def _restart(server: Server) -> None:
    server.kill()
    server.start()
    server.wait_until_ready()


HalfWay = tuple[Transfer, "Future[Received]"]


def test_nothing_can_be_used_before_all_has_come(
    half_way: HalfWay, taker: Session, destination: Server, between: Valve, expected: Images
) -> None:
    """Blocks that are being filled can be seen, but neither read, committed nor copied; then they are whole."""
    _, receiving = half_way
    with destination.client() as client:
        partial = next(client.list_blocks(session_id=taker.session_id)).blocks
    uses: list[Callable[[], object]] = [
        lambda: taker.read_images(partial),
        lambda: taker.create_transfer(partial),
        lambda: taker.commit_blocks(partial[:1], prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16),
    ]
    for use in uses:
        with pytest.raises(StatepoolError) as caught:
            use()
        assert caught.value.reason == "BLOCK_BUSY"
    between.open()

    received = receiving.result()

    assert received.blocks == partial
    assert np.array_equal(images(taker, received.blocks), expected)


def test_the_lease_ends(
    half_way: HalfWay, source: Server, destination: Server, lender: Session, between: Valve, blocks: BlockRefs
) -> None:
    """What ends before the last byte has been read yields nothing, though its blocks are written anew at once."""
    transfer, receiving = half_way
    with source.client() as client:
        client.cancel_transfer(transfer)
        lender.write_blocks(blocks, np.zeros((BLOCKS, 100), np.uint8))
        between.open()

        with pytest.raises(TransferNotFoundError, match="was cancelled"):
            receiving.result()
    _assert_nothing_is_left(destination)
    _assert_nothing_is_left(source, held=BLOCKS)


def test_expiry_during_the_read(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, between: Valve
) -> None:
    """A lease that runs out in the middle of a stream ends it, and the destination frees its blocks."""
    with ThreadPoolExecutor(1) as executor:
        transfer = lender.create_transfer(blocks, ttl=1.0)
        receiving = executor.submit(taker.receive_transfer, transfer, source=between.target, timeout=DEADLINE_SECONDS)
        between.wait_until_shut()
        _assert_nothing_is_left(source, held=BLOCKS)
        between.open()

        with pytest.raises(TransferNotFoundError, match="has expired"):
            receiving.result()
    _assert_nothing_is_left(destination)


def test_a_cut_connection_is_gone_on_with(
    half_way: HalfWay, taker: Session, source: Server, destination: Server, between: Valve, expected: Images
) -> None:
    """A stream that breaks is followed by another from the same byte on; nothing is lost or mixed up."""
    between.cut()

    received = half_way[1].result()

    assert np.array_equal(images(taker, received.blocks), expected)
    _assert_nothing_is_left(source, held=BLOCKS)


def test_the_source_is_killed_and_comes_back(
    half_way: HalfWay, taker: Session, source: Server, between: Valve, expected: Images
) -> None:
    """The lease survives the source's death: the reception goes on with its next process."""
    source.kill()
    between.cut()
    source.start()
    source.wait_until_ready()

    received = half_way[1].result()

    assert np.array_equal(images(taker, received.blocks), expected)
    _assert_nothing_is_left(source, held=BLOCKS)


@pytest.mark.parametrize("patience", ["1s"])
def test_the_source_is_killed_for_good(
    half_way: HalfWay, source: Server, destination: Server, between: Valve, patience: str
) -> None:
    """A source that does not come back is given up within the stall timeout, and the blocks are free."""
    source.kill()
    between.cut()

    with pytest.raises(PeerLostError):
        half_way[1].result()
    _assert_nothing_is_left(destination)
    source.start()
    source.wait_until_ready()


def test_the_destination_is_killed(
    half_way: HalfWay, source: Server, destination: Server, between: Valve, taker: Session, expected: Images
) -> None:
    """The next process of the destination frees what was half filled; the caller may receive again."""
    transfer, receiving = half_way
    with destination.client() as client:
        partial = next(client.list_blocks(session_id=taker.session_id)).blocks
    _restart(destination)
    between.open()

    received = receiving.result()  # the client asks again, of the server that has recovered its session

    assert np.array_equal(images(taker, received.blocks), expected)
    with pytest.raises(StatepoolError) as stale:
        taker.free_blocks(partial)
    assert stale.value.reason == "GENERATION_STALE"
    taker.free_blocks(received.blocks)
    _assert_nothing_is_left(destination)
    _assert_nothing_is_left(source, held=BLOCKS)
    assert transfer.block_count == BLOCKS


def test_the_destination_is_killed_after_the_end(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, expected: Images
) -> None:
    """What was received outlives the destination's death, and the source's, with its bytes."""
    transfer = lender.create_transfer(blocks)
    received = taker.receive_transfer(transfer, source=source.target)
    for server in (source, destination):
        _restart(server)
    taker.retain_blocks(received.blocks)  # a stream does not wait until the session is resumed, as this does

    assert np.array_equal(images(taker, received.blocks), expected)
    _assert_nothing_is_left(source, held=BLOCKS)
    with source.client() as client:
        client.complete_transfer(transfer)


def test_a_lease_survives_the_source_before_the_first_byte(
    lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """A transfer that was created is there after a crash; one that has ended is not, and is known to have."""
    kept, ended = lender.create_transfer(blocks), lender.create_transfer(blocks)
    with source.client() as client:
        client.cancel_transfer(ended)
        _restart(source)

        assert [info.transfer_id for info in client.list_transfers()] == [kept.transfer_id]
        with pytest.raises(TransferNotFoundError, match="was cancelled"):
            list(client.pull_blocks(ended))
    received = taker.receive_transfer(kept, source=source.target)
    assert np.array_equal(images(taker, received.blocks), expected)


def test_a_deadline_half_way(
    lender: Session, taker: Session, source: Server, destination: Server, blocks: BlockRefs, between: Valve
) -> None:
    """A caller whose deadline passes leaves nothing behind, and may receive again."""
    transfer = lender.create_transfer(blocks)
    with pytest.raises(DeadlineExceededError):
        taker.receive_transfer(transfer, source=between.target, timeout=0.5)
    _assert_nothing_is_left(destination)
    between.open()

    assert len(taker.receive_transfer(transfer, source=between.target).blocks) == BLOCKS


def test_a_session_that_is_lost_half_way(
    half_way: HalfWay, taker: Session, source: Server, destination: Server, between: Valve
) -> None:
    """A session that is deleted while its blocks are being filled gets none of them."""
    with destination.client() as client:
        taker.delete()
        between.open()

        with pytest.raises(StatepoolError):
            half_way[1].result()
        _assert_nothing_is_left(destination)
        assert client.get_pool().usage.free_blocks == CAPACITY


@pytest.mark.parametrize(
    ("limit", "told"),
    [(("--max-queued-copies", "1"), ""), (("--copy-stall-timeout", "200ms"), "memory work stands still")],
)
def test_no_thread_puts_the_bytes_away(
    servers: Servers,
    limit: tuple[str, str],
    told: str,
    lender: Session,
    source: Server,
    blocks: BlockRefs,
    expected: Images,
) -> None:
    """While the destination's own memory work is full, or stands still, nothing of what comes is passed over."""
    flags = (*FLAGS, "--stall-timeout", "20s", *limit)
    destination = servers.start(*flags, conv_shape=WIDE, environment=STANDING_COPY).wait_until_ready()
    with destination.client() as client, client.create_session(LONG) as taker, copying(destination, told):
        received = taker.receive_transfer(lender.create_transfer(blocks), source=source.target)

        assert np.array_equal(images(taker, received.blocks), expected)


def test_a_request_comes_again_half_way(
    lender: Session, taker: Session, destination: Server, blocks: BlockRefs, between: Valve, expected: Images
) -> None:
    """Under one id receptions take turns, and one succeeds; all others get its answer, whoever was cancelled."""
    transfer = lender.create_transfer(blocks)
    ref = pb.TransferRef(transfer_id=transfer.transfer_id, token=transfer.token)
    request = pb.ReceiveTransferRequest(
        session=ref_of(taker), source=between.target, transfer=ref, block_count=BLOCKS, request_id="one"
    )
    other = pb.ReceiveTransferRequest()
    other.CopyFrom(request)
    other.block_count = 1
    with plain_stubs(destination) as stubs, destination.client() as client:

        def ask(request: pb.ReceiveTransferRequest) -> Any:
            before = client.get_metrics().total("statepool_current_rpcs")
            call = stubs.transfers.ReceiveTransfer.future(request, timeout=DEADLINE_SECONDS)
            until(lambda: client.get_metrics().total("statepool_current_rpcs") > before, "the call to come")
            return call

        first = ask(request)
        between.wait_until_shut()
        second, third, fourth, fifth = (ask(each) for each in (request, request, request, other))
        held = client.get_pool().usage.held_blocks
        first.cancel()
        third.cancel()
        between.open()

        received = second.result()

        assert held == BLOCKS
        assert fourth.result() == received
        assert isinstance(refusal_of(fifth.result), RequestIdReusedError)
        assert client.get_pool().usage.held_blocks == BLOCKS
    assert np.array_equal(images(taker, refs_from_wire(received.blocks)), expected)
