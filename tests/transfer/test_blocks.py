"""Guarantee: lent blocks arrive byte for byte on every rank, stay what they are meanwhile, and are given back after."""

import time
from collections.abc import Callable

import numpy as np
import pytest

from service.servers import CAPACITY, Server, Servers, until
from statepool import (
    AsyncClient,
    BadFieldError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    BlockNotOwnedError,
    BlockRefs,
    Client,
    DataPath,
    GenerationStaleError,
    LayoutMismatchError,
    PeerLostError,
    PeerUntrustedError,
    PoolExhaustedError,
    QuotaExceededError,
    Session,
    Transfer,
    TransferNotFoundError,
)
from transfer.images import RANKS, Images, fill, images

LONG = 60.0


@pytest.fixture
def blocks(lender: Session) -> BlockRefs:
    """Allocates what is lent: a block that will be committed, and two that will not."""
    return lender.allocate_blocks(3)


@pytest.fixture
def expected(here: Client, lender: Session, blocks: BlockRefs) -> Images:
    """Fills the blocks with random states and commits the first."""
    written = fill(lender, blocks, here.get_pool())
    lender.commit_blocks(blocks[:1], prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)
    return written


def test_a_server_receives(
    here: Client, lender: Session, taker: Session, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """The destination's server pulls committed and uncommitted blocks, on both ranks, and ends the transfer."""
    transfer = lender.create_transfer(blocks, peer="decode")

    received = taker.receive_transfer(transfer, source=source.target)

    assert np.array_equal(images(taker, received.blocks), expected)
    assert (received.nbytes, received.data_path) == (expected.nbytes, DataPath.GRPC)
    assert not list(here.list_transfers())
    assert here.get_pool().usage.busy_blocks == 0


async def test_a_server_receives_for_asyncio(
    lender: Session, there: Client, destination: Server, source: Server, blocks: BlockRefs, expected: Images
) -> None:
    """The asyncio client lends, receives, lists and ends alike."""
    async with (
        AsyncClient(source.target) as lending,
        AsyncClient(destination.target) as taking,
        await lending.create_session(LONG) as owner,
        await taking.create_session(LONG) as session,
    ):
        transfer = await owner.create_transfer(blocks[:1])
        assert [info.transfer_id async for info in lending.list_transfers()] == [transfer.transfer_id]
        chunks = [chunk.data async for chunk in lending.pull_blocks(transfer, tp_rank=1)]
        received = await session.receive_transfer(transfer, source=source.target)
        await lending.complete_transfer(transfer)
        with pytest.raises(TransferNotFoundError, match="was completed"):
            await lending.cancel_transfer(transfer)

        assert b"".join(chunks) == expected[1, 0].tobytes()
        assert np.array_equal(await session.read_images(received.blocks, rank_index=0), expected[0, :1])


def test_a_client_relays(here: Client, lender: Session, taker: Session, blocks: BlockRefs, expected: Images) -> None:
    """A client that pulls from the one server and writes to the other has moved the same bytes."""
    transfer = lender.create_transfer(blocks)
    into = taker.allocate_blocks(3)
    for rank in RANKS:
        data = b"".join(chunk.data for chunk in here.pull_blocks(transfer, tp_rank=rank))
        taker.write_blocks(into, data, rank_index=rank)
    here.complete_transfer(transfer)

    assert np.array_equal(images(taker, into), expected)


def test_streams_begin_where_the_reader_says(
    here: Client, lender: Session, blocks: BlockRefs, expected: Images
) -> None:
    """Any image and byte may be the first, and any number of images all."""
    transfer = lender.create_transfer(blocks)
    every = expected[0].ravel()
    size = expected.shape[2]

    for index, offset, count in [(0, 1000, None), (1, 0, 1), (2, size - 1, None), (0, 70000, 2)]:
        pulled = b"".join(
            chunk.data for chunk in here.pull_blocks(transfer, block_index=index, offset=offset, block_count=count)
        )
        end = len(every) if count is None else (index + count) * size
        assert pulled == every[index * size + offset : end].tobytes()

    for index, offset, count in [(3, 0, None), (0, size, None), (1, 0, 3)]:
        with pytest.raises(BlockIndexOutOfRangeError):
            list(here.pull_blocks(transfer, block_index=index, offset=offset, block_count=count))
    here.cancel_transfer(transfer)


def test_a_lease_outlives_its_session(here: Client, source: Server, there: Client, taker: Session) -> None:
    """Blocks of a session that has ended are read as they were, and are free when the transfer ends."""
    with here.create_session(LONG) as session:
        blocks = session.allocate_blocks(2)
        expected = fill(session, blocks, here.get_pool())
        transfer = session.create_transfer(blocks)
    with here.create_session(LONG) as session:
        others = session.allocate_blocks(CAPACITY - 2)
        with pytest.raises(PoolExhaustedError):
            session.allocate_blocks(1)
        fill(session, others, here.get_pool(), seed=1)

        received = taker.receive_transfer(transfer, source=source.target)

        assert np.array_equal(images(taker, received.blocks), expected)
        assert len(session.allocate_blocks(2)) == 2


def test_lent_blocks_are_not_written(here: Client, lender: Session, blocks: BlockRefs, expected: Images) -> None:
    """Writes, copies and shifts are refused until the transfer ends; eviction and frees wait for it."""
    transfer = lender.create_transfer(blocks)
    spare = lender.allocate_blocks(1)

    writes: list[Callable[[], object]] = [
        lambda: lender.write_blocks(blocks[1], b"x"),
        lambda: lender.copy_blocks(src=spare, dst=blocks[1]),
        lambda: lender.copy_blocks(src=blocks[2], dst=blocks[2], token_bias=1),
    ]
    for write in writes:
        with pytest.raises(BlockBusyError):
            write()
    lender.copy_blocks(src=blocks[1], dst=spare)
    lender.evict_blocks(blocks[:1])
    lender.free_blocks(blocks)
    assert here.get_pool().usage.releasing_blocks == 3
    pulled = b"".join(chunk.data for chunk in here.pull_blocks(transfer))
    here.complete_transfer(transfer)

    assert pulled == expected[0].tobytes()
    assert here.get_pool().usage.free_blocks == CAPACITY - 1


def test_what_cannot_be_lent(here: Client, lender: Session, blocks: BlockRefs, expected: Images) -> None:
    """Strangers' uncommitted blocks, stale refs, blocks of sequences and nothing at all are refused, with a field."""
    with here.create_session(LONG) as stranger:
        lent = [stranger.create_transfer(blocks[:1])]
        with pytest.raises(BlockNotOwnedError):
            stranger.create_transfer(blocks)
        stale = stranger.allocate_blocks(1)
        stranger.free_blocks(stale)
        with pytest.raises(GenerationStaleError):
            stranger.create_transfer(stale)
        with pytest.raises(BadFieldError, match="blocks or a sequence"):
            stranger.create_transfer(BlockRefs.empty())
        for ttl in (0.0, 1e6):
            with pytest.raises(BadFieldError, match="ttl"):
                stranger.create_transfer(blocks[:1], ttl=ttl)
        with pytest.raises(ValueError, match="exactly one"):
            stranger.create_transfer()
    guess = Transfer(lent[0].transfer_id, b"guessed", 1, 0)
    for call in (here.cancel_transfer, here.complete_transfer, lambda transfer: list(here.pull_blocks(transfer))):
        with pytest.raises(TransferNotFoundError):
            call(guess)
    for transfer in lent:
        here.cancel_transfer(transfer)


def test_ends(here: Client, lender: Session, blocks: BlockRefs) -> None:
    """A transfer ends once, in one way; to end it again in the same way does nothing."""
    completed, cancelled, expired = (lender.create_transfer(blocks[:1], ttl=ttl) for ttl in (LONG, LONG, 0.05))
    until(lambda: len(list(here.list_transfers())) == 2, "the third transfer to expire")
    for _ in range(2):
        here.complete_transfer(completed)
        here.cancel_transfer(cancelled)

    for end, match in (
        (lambda: here.cancel_transfer(completed), "was completed"),
        (lambda: here.complete_transfer(cancelled), "was cancelled"),
        (lambda: here.complete_transfer(expired), "has expired"),
        (lambda: list(here.pull_blocks(expired)), "has expired"),
    ):
        with pytest.raises(TransferNotFoundError, match=match):
            end()
    assert here.get_pool().usage.busy_blocks == 0


def test_listing(here: Client, lender: Session, blocks: BlockRefs) -> None:
    """Open transfers are listed page by page, without what would let others read them."""
    before = time.time()  # noqa: TID251 — the listing tells the server's wall clock
    transfers = [lender.create_transfer(blocks[:n], ttl=LONG, peer=f"decode-{n}") for n in (1, 2, 3)]

    listed = list(here.list_transfers(page_size=2))

    assert [info.transfer_id for info in listed] == [transfer.transfer_id for transfer in transfers]
    assert [(info.peer, info.block_count) for info in listed] == [("decode-1", 1), ("decode-2", 2), ("decode-3", 3)]
    assert all(info.session_id == lender.session_id for info in listed)
    assert all(-5 < info.expire_time.timestamp() - before - LONG < 5 for info in listed)
    assert str(transfers[0].token) not in repr(transfers[0])
    for transfer in transfers:
        here.cancel_transfer(transfer)


def test_open_transfers_are_bounded(servers: Servers) -> None:
    """One more than --max-transfers is refused, until one has ended."""
    server = servers.shared("--max-transfers", "2")
    with server.client() as client, client.create_session(LONG) as session:
        blocks = session.allocate_blocks(1)
        first, second = session.create_transfer(blocks), session.create_transfer(blocks)
        with pytest.raises(QuotaExceededError):
            session.create_transfer(blocks)
        client.cancel_transfer(first)
        third = session.create_transfer(blocks)
        for transfer in (second, third):
            client.cancel_transfer(transfer)


@pytest.mark.parametrize(
    "target", ["10.0.0.1:7070", "example.org:80", "dns:///127.0.0.1:7070", "ipv4:8.8.8.8:1", "", "x"]
)
def test_no_server_connects_elsewhere(taker: Session, there: Client, target: str) -> None:
    """A client cannot have the server connect to what is not on its machine."""
    with pytest.raises(PeerUntrustedError):
        taker.receive_transfer(Transfer(1, bytes(16), 1, 0), source=target)
    assert there.get_pool().usage.held_blocks == 0


def test_only_listed_peers(servers: Servers, source: Server, here: Client, lender: Session, blocks: BlockRefs) -> None:
    """With --allow-peer a server receives from nobody else."""
    picky = servers.shared("--allow-peer", "unix:/nowhere.sock")
    transfer = lender.create_transfer(blocks)
    with picky.client() as client, client.create_session(LONG) as session:
        with pytest.raises(PeerUntrustedError, match="not among those"):
            session.receive_transfer(transfer, source=source.target)
        with pytest.raises(PeerLostError):
            session.receive_transfer(transfer, source="unix:/nowhere.sock")
        assert client.get_pool().usage.held_blocks == 0
    here.cancel_transfer(transfer)


def test_another_layout(servers: Servers, source: Server, here: Client, lender: Session, blocks: BlockRefs) -> None:
    """A pool of other states takes nothing, and its client gets the session's blocks back."""
    other = servers.shared()
    transfer = lender.create_transfer(blocks)
    with other.client() as client, client.create_session(LONG) as session:
        with pytest.raises(LayoutMismatchError):
            session.receive_transfer(transfer, source=source.target)
        assert client.get_pool().usage.held_blocks == 0
    with pytest.raises(LayoutMismatchError):
        list(here.pull_blocks(transfer, layout_fingerprint="other"))
    with pytest.raises(LayoutMismatchError):
        list(here.pull_blocks(transfer, tp_rank=2))
    here.cancel_transfer(transfer)


def test_an_exhausted_pool(source: Server, here: Client, lender: Session, taker: Session, blocks: BlockRefs) -> None:
    """Without room nothing is pulled; the transfer can be received later."""
    transfer = lender.create_transfer(blocks)
    taken = taker.allocate_blocks(CAPACITY - 2)
    with pytest.raises(PoolExhaustedError):
        taker.receive_transfer(transfer, source=source.target)
    taker.free_blocks(taken)

    assert len(taker.receive_transfer(transfer, source=source.target).blocks) == 3
