"""A lane: one session that runs cycles of operations, one after the other, and checks what comes back."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

import numpy as np

from statepool.aio.client import AsyncClient
from statepool.aio.session import AsyncSession
from statepool.copies import max_token_bias
from statepool.descriptions import Pool
from statepool.errors import StatepoolError
from statepool.loadtest.images import Image, Oracle
from statepool.loadtest.options import MIXES, BlocksWorkload, LoadOptions
from statepool.loadtest.pace import Pace
from statepool.loadtest.record import Recorder
from statepool.refs import BlockRefs

T = TypeVar("T")

SESSION_TTL = 10.0
MAX_WAIT = 2.0
"""Seconds that an allocation may wait for blocks; a full pool is no error for a load test."""
HOT_PREFIXES = 64
"""Prefixes that all lanes of the prefix cycle share."""


class _CycleFailedError(Exception):
    """An operation of a cycle failed; it is recorded already."""


class _TimeOverError(Exception):
    """The load test is over in the middle of a cycle."""


class Lane:
    """One of the concurrent callers of a load test."""

    def __init__(
        self,
        number: int,
        workload: BlocksWorkload,
        options: LoadOptions,
        client: AsyncClient,
        pool: Pool,
        recorder: Recorder,
    ) -> None:
        self._options = options
        self._client = client
        self._pool = pool
        self._recorder = recorder
        self._random = random.Random(f"{options.seed}.{number}")  # noqa: S311 - traffic, not secrets
        self._number = number
        self._serial = 0
        self._oracle = Oracle(pool.layout.block, options.seed) if options.verify else None
        self._max_bias = max_token_bias(pool.layout.block)
        self._workload = workload
        self._pace: Pace  # begins with the run
        self._cycles: dict[str, Callable[[AsyncSession], Awaitable[None]]] = {
            "state": self._state_cycle,
            "prefix": self._prefix_cycle,
            "churn": self._churn_cycle,
        }

    async def run(self, until_ns: int) -> None:
        """Runs cycles until a time of ``time.perf_counter_ns``; a failed cycle costs the session, so nothing leaks."""
        self._pace = Pace(self._number, self._workload.concurrency, self._options.rate, until_ns)
        while time.perf_counter_ns() < until_ns:
            try:
                async with await self._client.create_session(SESSION_TTL) as session:
                    await self._cycles_of(session)
            except _CycleFailedError:
                continue
            except _TimeOverError:
                break
            except StatepoolError as error:
                self._recorder.error("create_session", error)
                await self._pace.turn()
        for what in ("arrived", "waiting"):
            self._recorder.count(what, self._pace.overdue())

    async def _cycles_of(self, session: AsyncSession) -> NoReturn:
        mix = MIXES[self._workload.mix]
        while True:
            (name,) = self._random.choices(list(mix), list(mix.values()))
            await self._cycles[name](session)

    async def _timed(self, operation: str, call: Callable[[], Awaitable[T]]) -> T:
        due_ns = await self._pace.turn()
        if due_ns is None:
            raise _TimeOverError
        self._recorder.count("arrived")
        try:
            with self._recorder.timed(operation, due_ns):
                return await call()
        except StatepoolError as error:
            raise _CycleFailedError from error

    async def _churn_cycle(self, session: AsyncSession) -> None:
        blocks = await self._allocate(session, self._workload.batch, zero=False)
        await self._timed("free", lambda: session.free_blocks(blocks))

    async def _prefix_cycle(self, session: AsyncSession) -> None:
        first = self._random.randrange(HOT_PREFIXES)
        chain = [b"hot.%d.%d" % (first, depth) for depth in range(self._workload.batch)]
        hit = await self._timed("lookup", lambda: session.lookup_prefix(chain, namespace=self._options.namespace))
        held = BlockRefs.empty() if hit is None else hit.block
        depth = 0 if hit is None else hit.hash_index + 1
        if depth < len(chain):
            missed = await self._allocate(session, len(chain) - depth, zero=False)
            await self._commit(session, missed, chain[depth:], first_boundary=depth + 1)
            held = BlockRefs.concat([held, missed])
        await self._timed("free", lambda: session.free_blocks(held))

    async def _state_cycle(self, session: AsyncSession) -> None:
        half = max(1, self._workload.batch // 2)
        blocks = await self._allocate(session, 2 * half, zero=True)
        src, dst = blocks[:half], blocks[half:]
        verify = self._oracle is not None and self._random.random() < self._options.verify
        rank = self._random.randrange(len(self._pool.tp_ranks))
        bias = self._random.randint(0, self._max_bias)
        image = await self._write_pattern(session, src[:1], rank) if verify else None
        await self._specs(src)
        await self._copy(session, src, dst, bias)
        if image is not None:
            image = await self._check_copy(session, image, dst[:1], bias, rank)
        await self._commit_and_find(session, dst, image, rank)
        await self._timed("free", lambda: session.free_blocks(blocks))

    async def _commit_and_find(self, session: AsyncSession, dst: BlockRefs, image: Image | None, rank: int) -> None:
        self._serial += 1
        hashes = [b"%d.%d.%d" % (self._number, self._serial, row) for row in range(len(dst))]
        await self._commit(session, dst, hashes, first_boundary=1)
        hit = await self._timed(
            "lookup", lambda: session.lookup_prefix([*hashes, b"absent"], namespace=self._options.namespace)
        )
        found = hit is not None and hit.hash_index == len(dst) - 1 and hit.block == dst[len(dst) - 1]
        self._recorder.verify("lookup finds the deepest committed block", found)
        if hit is not None:
            await self._timed("free", lambda: session.free_blocks(hit.block))
        if image is not None:
            again = await self._timed(
                "lookup", lambda: session.lookup_prefix(hashes[:1], namespace=self._options.namespace)
            )
            if again is not None:
                read = await self._timed("read", lambda: session.read_images(again.block, rank_index=rank))
                self._recorder.verify("bytes of a prefix hit", np.array_equal(read[0], image))
                await self._timed("free", lambda: session.free_blocks(again.block))

    async def _write_pattern(self, session: AsyncSession, block: BlockRefs, rank: int) -> Image:
        assert self._oracle is not None  # noqa: S101 - only called when bytes are verified
        self._serial += 1
        image = self._oracle.pattern(self._number << 32 | self._serial)
        await self._timed("write", lambda: session.write_blocks(block, image[None], rank_index=rank))
        return image

    async def _check_copy(self, session: AsyncSession, image: Image, dst: BlockRefs, bias: int, rank: int) -> Image:
        assert self._oracle is not None  # noqa: S101 - only called when bytes are verified
        expected = self._oracle.copied(image, np.zeros_like(image), bias)
        read = await self._timed("read", lambda: session.read_images(dst, rank_index=rank))
        self._recorder.verify("bytes of a copy", np.array_equal(read[0], expected))
        if self._max_bias:
            await self._copy(session, dst, dst, 1)
            expected = self._oracle.copied(expected, expected, 1)
            read = await self._timed("read", lambda: session.read_images(dst, rank_index=rank))
            self._recorder.verify("bytes of a shift in place", np.array_equal(read[0], expected))
        return expected

    async def _allocate(self, session: AsyncSession, count: int, *, zero: bool) -> BlockRefs:
        return await self._timed("allocate", lambda: session.allocate_blocks(count, zero=zero, max_wait=MAX_WAIT))

    async def _specs(self, blocks: BlockRefs) -> None:
        ids = blocks.block_ids
        specs = await self._timed("copy_specs", lambda: self._client.compute_copy_specs(ids, 0, 1))
        whole = [state.num_elements for state in self._pool.layout.block.states]
        self._recorder.verify("copy specs of one accepted token", specs.num_elements[0].tolist() == whole)

    async def _copy(self, session: AsyncSession, src: BlockRefs, dst: BlockRefs, bias: int) -> None:
        nbytes = await self._timed("copy", lambda: session.copy_blocks(src=src, dst=dst, token_bias=bias))
        self._recorder.copied(nbytes)

    async def _commit(
        self, session: AsyncSession, blocks: BlockRefs, hashes: list[bytes], *, first_boundary: int
    ) -> None:
        boundaries = (np.arange(len(blocks)) + first_boundary) * self._pool.block_tokens
        await self._timed(
            "commit",
            lambda: session.commit_blocks(
                blocks,
                prefix_hashes=hashes,
                boundary_tokens=boundaries,
                written_through_tokens=boundaries,
                namespace=self._options.namespace,
            ),
        )
