"""Guarantee: when the memory work of a step fails, its caller is told, and nothing of it can be found."""

import asyncio

import numpy as np
import pytest

from statepool.copies import Column, CopyPlan
from statepool.errors import StateLostError
from statepool.layout import ArenaLayout, BlockLayout, ConvLayout, Dtype, StateKind, StateSpec
from statepool.v1 import sequence_pb2 as pb
from statepool_server.config import ServerConfig
from statepool_server.memory import Memory
from statepool_server.planning import limits_of
from statepool_server.pool import Pool, PoolConfig
from statepool_server.service.copying import CopyThreads
from statepool_server.service.core import Core, PoolDescription
from statepool_server.service.steps import Steps
from statepool_server.service.verifying import Verifier

BLOCK_TOKENS = 4


class BrokenEngine:
    """A copy engine whose device has failed."""

    def copy(self, plan: CopyPlan) -> None:
        """Fails."""
        raise RuntimeError("the device is gone")

    def zero(self, block_ids: Column) -> None:
        """Does nothing: zeroing still works."""


@pytest.fixture
def core() -> Core:
    """Builds a pool whose copies fail."""
    state = StateSpec("state", 0, StateKind.TEMPORAL, Dtype.FLOAT32, (2, 4))
    layout = ArenaLayout(BlockLayout.of([state], ConvLayout.SD), 9)
    description = PoolDescription(
        model_type="custom",
        family="custom",
        family_parameters={},
        layout=layout,
        block_tokens=BLOCK_TOKENS,
        tp_size=1,
        tp_ranks=(0,),
        num_spec=0,
        devices=("cpu",),
        features=(),
    )
    return Core(
        description=description,
        limits=limits_of(ServerConfig(model_config="custom")),
        pool=Pool(PoolConfig(block_count=9, block_tokens=BLOCK_TOKENS)),
        memory=Memory(layout, [], [BrokenEngine()]),
        copies=CopyThreads(1, 4),
    )


async def test_failed_copies(core: Core) -> None:
    """The step tells which sequence is lost, again when it is asked again; that one can only be finished."""
    steps = Steps(core, asyncio.Event(), Verifier(core, "off", 1))
    session, _ = core.pool.create_session("", 10**12, False, 0)
    who = (session.session_id, session.epoch)
    schedules = pb.Schedules(sequence_ids=[1], num_tokens=[BLOCK_TOKENS])
    admissions = pb.Admissions(sequence_ids=[1], prompt_tokens=[2 * BLOCK_TOKENS])
    await steps.apply(who, pb.EngineStep(step=1, admissions=admissions, schedules=schedules))
    commits = pb.Commits(all_running=True, accepted_tokens=[1])
    moving = pb.EngineStep(step=2, settled_step=1, commits=commits, schedules=schedules)

    for _ in range(2):
        assert list((await steps.apply(who, moving)).lost_sequence_ids) == [1]
    going_on = pb.EngineStep(step=3, settled_step=2, commits=commits)
    with pytest.raises(StateLostError, match="commits"):
        await steps.apply(who, going_on)
    outcome = await steps.apply(who, pb.EngineStep(step=3, settled_step=2, finishes=[1]))
    await core.copies.close(5.0)

    assert outcome.usage.free_blocks == core.pool.capacity
    assert not np.count_nonzero(core.pool.blocks.busy)
