"""Guarantee: copy specs and copies are those of the definition, on every rank, in every layout."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from service.conftest import empty
from service.raw import writing
from service.servers import CAPACITY, CONV_ROWS, IMAGE_BYTES, Server, Servers
from statepool import (
    BadFieldError,
    BlockBusyError,
    BlockIndexOutOfRangeError,
    BlockNotOwnedError,
    BlockNotWritableError,
    BlockRefs,
    Client,
    ColumnLengthMismatchError,
    DsSpecNotContiguousError,
    Session,
)
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, StateKind, TensorSpec

Images = NDArray[np.uint8]
"""Bytes of block images, ``[ranks, n, IMAGE_BYTES]``."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Copies of one call between blocks that are named by their rows."""

    src: list[int]
    dst: list[int]
    bias: list[int]
    temporal_src: list[int] | None = None


CASES = {
    "plain": Case([0, 1], [2, 3], [0, 0]),
    "bias": Case([0, 1, 2], [3, 4, 5], [1, 2, 3]),
    "shift in place": Case([0, 1, 2], [0, 1, 2], [1, 2, 3]),
    "nothing": Case([0], [0], [0]),
    "swap": Case([0, 1], [1, 0], [0, 2]),
    "chain": Case([0, 1, 2], [1, 2, 3], [1, 0, 3]),
    "one source": Case([0, 0, 0], [1, 2, 0], [0, 1, 2]),
    "temporal source": Case([0, 1, 2], [3, 4, 2], [1, 0, 2], [5, 3, 4]),
    "temporal source is the destination": Case([0, 1], [2, 3], [1, 0], [2, 0]),
}


DS_FLAGS = ("--conv-layout", "DS", "--arrangement", "layer_major")


@pytest.fixture(params=["SD block_major host", "SD layer_major reference", "DS layer_major host"])
def any_layout(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Gives servers of both conv layouts, both arrangements and both engines."""
    if request.param == "SD block_major host":
        return servers.shared()
    if request.param == "SD layer_major reference":
        return servers.shared("--arrangement", "layer_major", "--copy-engine", "reference")
    return servers.shared(*DS_FLAGS, conv_shape=(8, CONV_ROWS))


@pytest.fixture
def ds_client(servers: Servers) -> Iterator[Client]:
    """Connects to a server of conv layout DS."""
    with servers.shared(*DS_FLAGS, conv_shape=(8, CONV_ROWS)).client() as client:
        yield client


def _states(images: Images, block: BlockLayout) -> dict[str, NDArray[np.uint8]]:
    """Views the states of images as bytes, ``[ranks, n, *shape, itemsize]``; what is padding is not in them."""
    return {
        state.name: images[..., offset : offset + state.nbytes].reshape(
            *images.shape[:2], *state.shape, state.dtype.itemsize
        )
        for state, offset in zip(block.states, block.image_offsets, strict=True)
    }


def _copied(before: Images, case: Case, block: BlockLayout) -> Images:
    """Copies by the definition, one row and state at a time."""
    after = before.copy()
    old, new = _states(before, block), _states(after, block)
    for row, (src, dst, bias) in enumerate(zip(case.src, case.dst, case.bias, strict=True)):
        for state in block.states:
            source, target = old[state.name], new[state.name]
            if state.kind is StateKind.TEMPORAL:
                target[:, dst] = source[:, src if case.temporal_src is None else case.temporal_src[row]]
            elif block.conv_layout is ConvLayout.SD:
                target[:, dst, : state.shape[0] - bias] = source[:, src, bias:]
            else:
                target[:, dst, :, : state.shape[1] - bias] = source[:, src, :, bias:]
    return after


def _fill(session: Session, blocks: BlockRefs, seed: int) -> Images:
    images = np.random.default_rng(seed).integers(0, 256, (2, len(blocks), IMAGE_BYTES), np.uint8)
    for rank in (0, 1):
        session.write_blocks(blocks, images[rank], rank_index=rank)
    return images


def _read(session: Session, blocks: BlockRefs) -> Images:
    return np.stack([session.read_images(blocks, rank_index=rank) for rank in (0, 1)])


@pytest.mark.parametrize("name", CASES)
def test_copies_move_exactly_the_defined_bytes(any_layout: Server, name: str) -> None:
    """Every byte of every state on every rank is where the definition puts it, and nothing else has changed."""
    case = CASES[name]
    with any_layout.client() as client, client.create_session(60.0) as session:
        block, blocks = client.get_pool().layout.block, session.allocate_blocks(6)
        before = _fill(session, blocks, seed=len(name))

        session.copy_blocks(
            src=blocks[np.array(case.src)],
            dst=blocks[np.array(case.dst)],
            token_bias=case.bias,
            temporal_src=None if case.temporal_src is None else blocks[np.array(case.temporal_src)],
        )

        expected, after = _states(_copied(before, case, block), block), _states(_read(session, blocks), block)
        assert [name for name in expected if not np.array_equal(expected[name], after[name])] == []


def test_copied_bytes_are_counted_on_all_ranks(client: Client, session: Session) -> None:
    """The answer counts the bytes of the states that were written, padding not."""
    blocks = session.allocate_blocks(2)

    whole = session.copy_blocks(src=blocks[:1], dst=blocks[1:])
    shifted = session.copy_blocks(src=blocks[:1], dst=blocks[:1], token_bias=3)
    nothing = session.copy_blocks(src=blocks[:1], dst=blocks[:1])

    assert whole == 2 * sum(state.nbytes for state in client.get_pool().layout.block.states)
    assert (shifted, nothing) == (2 * 2 * 16, 0)


def test_committed_blocks_can_be_copied_from_only(session: Session, other: Session) -> None:
    """A committed block is anybody's source and nobody's destination."""
    committed, mine = session.allocate_blocks(1), other.allocate_blocks(1)
    session.write_blocks(committed, np.full((1, 64), 3, np.uint8))
    session.commit_blocks(committed, prefix_hashes=[b"c"], boundary_tokens=16, written_through_tokens=16)

    other.copy_blocks(src=committed, dst=mine)

    assert (other.read_images(mine, length=64) == 3).all()
    with pytest.raises(BlockNotWritableError) as caught:
        session.copy_blocks(src=committed, dst=committed, token_bias=1)
    assert caught.value.field == "dst"


def test_bad_copies_are_refused(session: Session, other: Session) -> None:
    """A stranger's block, a destination named twice, a bias past the conv state or unequal columns copy nothing."""
    mine, theirs = session.allocate_blocks(2), other.allocate_blocks(1)
    session.write_blocks(mine, np.full((2, 64), 9, np.uint8))
    first, second, twice = mine[:1], mine[1:], BlockRefs.concat([mine[1:], mine[1:]])

    for ask, expected, field in (
        ({"src": theirs, "dst": first}, BlockNotOwnedError, "src"),
        ({"src": first, "dst": theirs}, BlockNotOwnedError, "dst"),
        ({"src": first, "dst": second, "temporal_src": theirs}, BlockNotOwnedError, "temporal_src"),
        ({"src": mine, "dst": twice}, BadFieldError, "dst"),
        ({"src": first, "dst": second, "token_bias": 4}, BadFieldError, "token_biases"),
        ({"src": first, "dst": second, "token_bias": 2**32 - 1}, BadFieldError, "token_biases"),
        ({"src": mine, "dst": mine, "token_bias": [0, 1, 1]}, ColumnLengthMismatchError, "token_biases"),
    ):
        with pytest.raises(expected) as caught:
            session.copy_blocks(**ask)
        assert caught.value.field == field, ask
    with pytest.raises(ColumnLengthMismatchError):
        session.copy_blocks(src=first, dst=mine)
    assert (session.read_images(mine, length=64) == 9).all()


def test_blocks_being_written_are_busy(server: Server, session: Session) -> None:
    """While a stream writes a block, nobody copies from it or to it, and another block can be copied."""
    busy, free = session.allocate_blocks(1), session.allocate_blocks(2)

    with writing(server, session, busy):
        for src, dst in ((busy, free[:1]), (free[:1], busy)):
            with pytest.raises(BlockBusyError):
                session.copy_blocks(src=src, dst=dst)
        assert session.copy_blocks(src=free[:1], dst=free[1:]) > 0

    assert session.copy_blocks(src=busy, dst=free[:1]) > 0


def _spec(tensor: TensorSpec, layout: ArenaLayout, table: list[int], cur: int, accepted: int) -> tuple[int, int]:
    """Computes one copy spec by the definition."""
    state = tensor.state
    if state.kind is StateKind.TEMPORAL:
        return tensor.arena_offset + table[cur + accepted - 1] * tensor.block_stride, state.num_elements
    row = math.prod(state.shape[1:]) if layout.block.conv_layout is ConvLayout.SD else 0
    left_out = (accepted - 1) * row
    begin = tensor.arena_offset + table[cur] * tensor.block_stride + left_out * state.dtype.itemsize
    return begin, state.num_elements - left_out


def test_copy_specs_are_those_of_the_definition(any_layout: Server) -> None:
    """Offsets and counts of a ragged batch are those of the definition, in request and tensor order."""
    random = np.random.default_rng(1)
    tables = [random.integers(0, CAPACITY + 1, size=int(size)).tolist() for size in random.integers(4, 9, size=40)]
    cur = [int(random.integers(0, len(table) - 3)) for table in tables]
    with any_layout.client() as client:
        layout = client.get_pool().layout
        most = 4 if layout.block.conv_layout is ConvLayout.SD else 1
        accepted = [int(random.integers(1, most + 1)) for _ in tables]

        specs = client.compute_copy_specs(tables, cur, accepted)

        expected = [
            [_spec(tensor, layout, *request) for tensor in layout.tensors]
            for request in zip(tables, cur, accepted, strict=True)
        ]
        assert np.stack([specs.arena_offsets, specs.num_elements], axis=-1).tolist() == [
            [list(spec) for spec in row] for row in expected
        ]


def test_start_addresses_differ_from_offsets_by_the_arena(client: Client) -> None:
    """Per rank, every address is the arena's base plus the offset, and the ranks have arenas of their own."""
    first, second = (client.compute_copy_specs([[1, 2, 3], [4]], 0, 1, rank_index=rank) for rank in (0, 1))

    bases = [set((specs.start_addrs - specs.arena_offsets).ravel().tolist()) for specs in (first, second)]

    assert [len(base) for base in bases] == [1, 1]
    assert bases[0] != bases[1]
    assert first.arena_offsets.tolist() == second.arena_offsets.tolist()


@pytest.mark.parametrize(
    ("table", "cur", "accepted", "field"),
    [
        ([1, 2], 2, 1, "cur_block_idx"),
        ([1, 2], 1, 2, "num_accepted_tokens"),
        ([1, 2], 0, 0, "num_accepted_tokens"),
        ([1, 2, 3, 4, 5], 0, 5, "num_accepted_tokens"),
        ([CAPACITY + 1], 0, 1, "block_ids"),
        ([2**32 - 1], 0, 1, "block_ids"),
        ([], 0, 1, "cur_block_idx"),
        ([1], 2**32 - 1, 2**32 - 1, "num_accepted_tokens"),
    ],
)
def test_spec_out_of_range(client: Client, table: list[int], cur: int, accepted: int, field: str) -> None:
    """An index past the end of a list, of the pool or of a conv state is OUT_OF_RANGE."""
    with pytest.raises(BlockIndexOutOfRangeError) as caught:
        client.compute_copy_specs([table], cur, accepted)

    assert caught.value.field == field


def test_spec_of_an_unknown_rank(client: Client) -> None:
    """A rank that the server does not hold is a bad field."""
    with pytest.raises(BadFieldError) as caught:
        client.compute_copy_specs([[1]], 0, 1, rank_index=2)

    assert caught.value.field == "rank_index"


def test_ds_spec_of_several_tokens_is_not_contiguous(ds_client: Client) -> None:
    """In DS one accepted token has a spec, and several have none."""
    assert len(ds_client.compute_copy_specs([[1, 2]], 0, 1)) == 1
    with pytest.raises(DsSpecNotContiguousError) as caught:
        ds_client.compute_copy_specs([[1, 2]], 0, 2)

    assert caught.value.field == "num_accepted_tokens"


def test_copies_leave_no_pin(any_layout: Server) -> None:
    """After the copies of this file every block of every server can be had."""
    with any_layout.client() as client:
        empty(client)

        assert client.get_pool().usage.busy_blocks == 0
