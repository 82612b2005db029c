"""A small reference router: prefill where most of a prompt is known, decode where there is most room."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from statepool.aio.session import AsyncSession
from statepool.disagg.async_moves import move_async
from statepool.disagg.moves import DEFAULT_SECONDS
from statepool.disagg.prefixes import Directory
from statepool.disagg.states import RELEASE_SECONDS, Moved
from statepool.errors import StatepoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from statepool.refs import BlockRefs
    from statepool.results import Hit

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt, as far as a router looks at it."""

    request_id: int
    """Number of the caller's choice."""
    token_ids: Sequence[int]
    """The prompt."""
    prefix_hashes: Sequence[bytes]
    """Hashes of its full blocks, as `statepool.prefix_hashes` makes them."""
    namespace: str = ""
    """Where they are."""


class PrefillWorker(Protocol):
    """An engine that computes prompts, on the pool of its session."""

    @property
    def session(self) -> AsyncSession:
        """Session of its sequences."""

    async def prefill(self, request: Request) -> int:
        """Computes a prompt, except for its last token and the prefix that is found.

        Returns:
            Id of the sequence whose state has seen it; it stands still.
        """

    async def release(self, sequence_id: int) -> None:
        """Finishes a sequence; it may have failed half-way."""


class DecodeWorker(Protocol[Result_co]):
    """An engine that goes on from states."""

    @property
    def session(self) -> AsyncSession:
        """Session of its sequences."""

    async def decode(self, request: Request, state: Moved) -> Result_co:
        """Goes on from a state, whose block it owns from the first moment on."""


class Router(Generic[Result]):
    """Sends each request to one worker of each kind, and moves its state from the one to the other."""

    def __init__(
        self,
        prefill: Sequence[PrefillWorker],
        decode: Sequence[DecodeWorker[Result]],
        *,
        directory: Directory | None = None,
        move_seconds: float = DEFAULT_SECONDS,
    ) -> None:
        """Makes a router.

        Args:
            prefill: Workers that compute prompts.
            decode: Workers that go on from there.
            directory: Follows the servers of the prefill workers, by the targets of their sessions: then only the one
                that is chosen is asked. None: all of them are, for each request.
            move_seconds: Deadline of a move.

        Raises:
            ValueError: There is no worker of a kind.
        """
        if not prefill or not decode:
            raise ValueError("a router needs a worker of each kind")
        self._prefill = prefill
        self._decode = decode
        self._directory = directory
        self._move_seconds = move_seconds

    async def serve(self, request: Request) -> Result:
        """Has a request prefilled, moved and decoded; cancelling it gives everything back.

        Raises:
            StatepoolError: A server or a move has failed.
        """
        async with AsyncExitStack() as undo:
            async with self._placed(request) as worker:
                sequence_id = await worker.prefill(request)
                try:
                    target = await self._roomiest()
                    state = await move_async(
                        sequence_id, source=worker.session, destination=target.session, timeout=self._move_seconds
                    )
                    undo.push_async_callback(_free, target.session, state.blocks)
                finally:
                    await asyncio.shield(worker.release(sequence_id))
            undo.pop_all()
        return await target.decode(request, state)

    @asynccontextmanager
    async def _placed(self, request: Request) -> "AsyncIterator[PrefillWorker]":
        """Finds the worker whose pool has the deepest prefix, which is held there until the prompt is computed."""
        workers = self._candidates(request)
        lookups = [
            asyncio.ensure_future(worker.session.lookup_prefix(request.prefix_hashes, namespace=request.namespace))
            for worker in workers
        ]
        try:
            rooms, _ = await asyncio.gather(_rooms(workers), asyncio.wait(lookups))
            ranks = [(_depth(lookup.result()), room) for lookup, room in zip(lookups, rooms, strict=True)]
            yield workers[ranks.index(max(ranks))]
        finally:
            pairs = zip(workers, lookups, strict=True)
            await asyncio.shield(asyncio.gather(*(_give_back(worker.session, lookup) for worker, lookup in pairs)))

    def _candidates(self, request: Request) -> Sequence[PrefillWorker]:
        """Selects the workers that may have the deepest prefix; all of them where nothing is known of any."""
        if self._directory is None:
            return self._prefill
        hits = self._directory.lookup(request.prefix_hashes, namespace=request.namespace)
        deepest = {hit.server for hit in hits if hit.hash_index == hits[0].hash_index}
        return [worker for worker in self._prefill if worker.session.target in deepest] or self._prefill

    async def _roomiest(self) -> DecodeWorker[Result]:
        rooms = await _rooms(self._decode)
        return self._decode[rooms.index(max(rooms))]


def _depth(hit: "Hit | None") -> int:
    return -1 if hit is None else hit.hash_index


async def _give_back(session: AsyncSession, lookup: "asyncio.Future[Hit | None]") -> None:
    """Frees what a lookup has found, as well as it can; one that is under way still may find something yet."""
    with suppress(StatepoolError):
        hit = await lookup
        if hit is not None:
            await session.free_blocks(hit.block, timeout=RELEASE_SECONDS)


async def _free(session: AsyncSession, blocks: "BlockRefs") -> None:
    """Frees blocks that nobody owns, as well as it can."""
    with suppress(StatepoolError):
        await asyncio.shield(session.free_blocks(blocks, timeout=RELEASE_SECONDS))


async def _rooms(workers: "Sequence[PrefillWorker | DecodeWorker[Any]]") -> list[float]:
    return await asyncio.gather(*(_room(worker.session) for worker in workers))


async def _room(session: AsyncSession) -> float:
    """Tells which share of a pool's blocks is free or evictable."""
    pool = await session.get_pool()
    return (pool.usage.free_blocks + pool.usage.evictable_blocks) / pool.capacity
