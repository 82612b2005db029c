"""Guarantee: a sequence's state moves whole at any token count, and the sequence goes on there, or here."""

import numpy as np
import pytest

from service.servers import BLOCK_TOKENS, CAPACITY, Server
from statepool import (
    Admission,
    BlockBusyError,
    BlockInSequenceError,
    BlockRefs,
    Client,
    Commits,
    ImportedState,
    Schedules,
    SequenceNotFoundError,
    Session,
    StepOutOfOrderError,
)
from transfer.images import fill, images, shifted

ME = 7
"""The sequence."""


class Engine:
    """One sequence, stepped by hand."""

    def __init__(self, session: Session, admission: Admission) -> None:
        self.session = session
        self.blocks = BlockRefs.empty()
        self._step = 0
        self.step(admit=[admission])

    def step(self, **what: object) -> None:
        """Takes a step; its blocks are those of the running column and of the drafts after it."""
        self._step += 1
        outcome = self.session.step(self._step, **what)  # type: ignore[arg-type]
        if len(outcome.tables.rows):
            self.blocks = outcome.tables.blocks(0)

    def run(self, tokens: int, drafts: int = 0) -> None:
        """Schedules a pass; the caller writes the states."""
        self.step(schedule=Schedules([ME], tokens, drafts))

    def accept(self, tokens: int = 1) -> None:
        """Commits it."""
        self.step(commit=Commits([ME], tokens))


@pytest.fixture
def engine(lender: Session) -> Engine:
    """Begins a sequence of 40 prompt tokens at the source."""
    return Engine(lender, Admission(ME, 40))


def _moved(lender: Session, taker: Session, source: Server) -> tuple[BlockRefs, int]:
    transfer = lender.create_transfer(sequence_id=ME)
    return taker.receive_transfer(transfer, source=source.target).blocks, transfer.num_tokens


@pytest.mark.parametrize("tokens", [1, 5, BLOCK_TOKENS, BLOCK_TOKENS + 1, 40])
def test_after_a_prefill(
    engine: Engine, here: Client, lender: Session, taker: Session, source: Server, tokens: int
) -> None:
    """The state after any number of tokens is that of the running block, and is told with this number."""
    engine.run(tokens)
    expected = fill(lender, engine.blocks[:1], here.get_pool())
    engine.accept()

    blocks, num_tokens = _moved(lender, taker, source)

    assert num_tokens == tokens
    assert np.array_equal(images(taker, blocks), expected)


@pytest.mark.parametrize("accepted", [1, 2, 3])
def test_after_drafts(
    engine: Engine, here: Client, lender: Session, taker: Session, source: Server, accepted: int
) -> None:
    """Accepted drafts are shifted away: the state arrives as if its tokens had been computed one by one."""
    engine.run(5)
    engine.accept()
    engine.run(3, drafts=2)
    written = fill(lender, engine.blocks, here.get_pool())
    engine.accept(accepted)
    before = images(lender, engine.blocks)

    blocks, num_tokens = _moved(lender, taker, source)

    assert num_tokens == 5 + accepted
    conv, temporal = written[:, :1], written[:, accepted - 1 : accepted]
    expected = shifted(here.get_pool().layout.block, conv, temporal, accepted - 1)
    assert np.array_equal(images(taker, blocks), expected)
    assert np.array_equal(images(lender, engine.blocks), before)


def test_after_a_hit(here: Client, lender: Session, taker: Session, source: Server) -> None:
    """A sequence that has found its state and not run yet lends the block that it has found."""
    block = lender.allocate_blocks(1)
    expected = fill(lender, block, here.get_pool())
    lender.commit_blocks(block, prefix_hashes=[b"h"], boundary_tokens=16, written_through_tokens=16)
    Engine(lender, Admission(ME, 40, [b"h"]))

    blocks, num_tokens = _moved(lender, taker, source)

    assert num_tokens == BLOCK_TOKENS
    assert np.array_equal(images(taker, blocks), expected)


def test_it_goes_on_there(
    engine: Engine, here: Client, lender: Session, taker: Session, source: Server, there: Client
) -> None:
    """A sequence that begins with the moved state runs on it: in place, and over the next boundary."""
    engine.run(14)
    expected = fill(lender, engine.blocks[:1], here.get_pool())
    engine.accept()
    blocks, num_tokens = _moved(lender, taker, source)

    heir = Engine(taker, Admission(ME, 40, imported=ImportedState(blocks, num_tokens)))
    heir.run(1)
    assert heir.blocks.block_ids[0] != 0
    assert np.array_equal(images(taker, heir.blocks[:1]), expected)
    heir.accept()
    heir.run(4)
    assert np.array_equal(images(taker, heir.blocks[:1]), expected)
    heir.accept()
    heir.step(finish=[ME])
    engine.step(finish=[ME])

    assert there.get_pool().usage.free_blocks == here.get_pool().usage.free_blocks == CAPACITY


def test_it_goes_on_here(engine: Engine, here: Client, lender: Session) -> None:
    """While its state is lent a sequence is not scheduled, not even in place; other sequences are, and it is after."""
    engine.run(5)
    engine.accept()
    engine.run(1)  # all running sequences decode: the shortest way through a step
    engine.accept()
    engine.step(admit=[Admission(8, 40)])
    transfer = lender.create_transfer(sequence_id=ME)

    for tokens in (1, 30):
        with pytest.raises(BlockBusyError, match="lent to a transfer") as caught:
            engine.step(schedule=Schedules([8, ME], tokens))
        engine._step -= 1  # noqa: SLF001 — a refused step does not use its number up
        assert caught.value.metadata["row"] == "1"
    engine.step(schedule=Schedules([8], 4))
    engine.step(commit=Commits([8]))
    here.cancel_transfer(transfer)
    engine.run(1)
    engine.accept()


def test_a_lease_outlives_the_sequence(
    engine: Engine, here: Client, lender: Session, taker: Session, source: Server
) -> None:
    """The sequence can be finished as soon as its state is lent; its blocks are reused when the transfer has ended."""
    engine.run(20)
    expected = fill(lender, engine.blocks[:1], here.get_pool())
    engine.accept()
    transfer = lender.create_transfer(sequence_id=ME)
    engine.step(finish=[ME])
    others = lender.allocate_blocks(CAPACITY - 1)
    fill(lender, others, here.get_pool(), seed=1)

    received = taker.receive_transfer(transfer, source=source.target)

    assert np.array_equal(images(taker, received.blocks), expected)
    assert len(lender.allocate_blocks(1)) == 1


def test_sequences_that_do_not_stand_still(engine: Engine, lender: Session, here: Client) -> None:
    """No state, an outstanding pass, an unsettled pass, no such sequence: each is refused with its reason."""
    with pytest.raises(StepOutOfOrderError, match="no state yet"):
        lender.create_transfer(sequence_id=ME)
    engine.run(5)
    with pytest.raises(StepOutOfOrderError, match="outstanding"):
        lender.create_transfer(sequence_id=ME)
    engine.step(commit=Commits([ME]), settled_step=1)
    with pytest.raises(StepOutOfOrderError, match="not settled"):
        lender.create_transfer(sequence_id=ME)
    for unknown in (ME + 1, 2**63, 2**64 - 1):
        with pytest.raises(SequenceNotFoundError):
            lender.create_transfer(sequence_id=unknown)
    with pytest.raises(BlockInSequenceError):
        lender.create_transfer(engine.blocks[:1])
    engine.step()
    here.cancel_transfer(lender.create_transfer(sequence_id=ME))
