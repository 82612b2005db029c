"""The client for asyncio."""

# ruff: noqa: ASYNC109 — a deadline is sent to the server with each call, which asyncio.timeout cannot do

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from statepool import calls
from statepool.aio.endpoint import AsyncEndpoint
from statepool.aio.keeper import AsyncKeeper
from statepool.aio.opening import AsyncOpener
from statepool.aio.session import AsyncSession
from statepool.aio.transport import AsyncTransport
from statepool.channel import DEFAULT_TIMEOUT_SECONDS, ChannelOptions
from statepool.errors import StatepoolError
from statepool.lease import Terms
from statepool.security import Security, Tls

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.calls.blocks import BlockIds
    from statepool.descriptions import (
        Attachment,
        AttachOffer,
        CalculatedShapes,
        DrainProgress,
        ServerInfo,
        SessionInfo,
    )
    from statepool.layout import ConvLayout, Dtype, StateSpec
    from statepool.metrics import Metrics
    from statepool.outcomes import SequencePage
    from statepool.results import BlockPage, BlockState, CopySpecs, IntegrityReport
    from statepool.retries import ClientStats
    from statepool.watching import BlockChanges, WatchCursor


class AsyncClient(AsyncEndpoint):
    """Talks to one pool from one event loop: that of its first call.

    The methods, their arguments and their errors are those of `statepool.sync.client.Client`; listings are async
    iterators. Callbacks run on the event loop, so they must not block.

        async with AsyncClient("unix:///run/statepool/statepool.sock") as client:
            async with await client.create_session(ttl=10.0) as session:
                blocks = await session.allocate_blocks(4)
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        tls: Tls | grpc.ChannelCredentials | None = None,
        token: str | None = None,
        insecure: bool = False,
        options: ChannelOptions = (),
    ) -> None:
        """Makes a client; arguments as `Client`.

        Raises:
            ValueError: Plain text over a network without ``insecure=True``, or a token in plain text.
            OSError: A file of `Tls` cannot be read.
        """
        security = Security(tls=tls, token=token, insecure=insecure)
        super().__init__(AsyncTransport(target, timeout, security, options))
        self._keeper = AsyncKeeper(self._transport)
        self._opener = AsyncOpener(self._transport, self._keeper)

    @property
    def stats(self) -> ClientStats:
        """What has become of this client's calls and sessions so far."""
        return self._transport.stats

    async def get_server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server process is and since when it runs; see `Client.get_server_info`."""
        return await self._transport.execute(calls.pool.get_server_info(), timeout)

    async def get_metrics(self, *, timeout: float | None = None) -> Metrics:
        """Returns every metric of the server at this moment; see `Client.get_metrics`."""
        return await self._transport.execute(calls.pool.get_metrics(), timeout)

    async def calculate_state_shapes(
        self,
        model_config: str | Mapping[str, Any] | None = None,
        *,
        family: str | None = None,
        parameters: Mapping[str, int] | None = None,
        states: Sequence[StateSpec] | None = None,
        conv_layout: ConvLayout | str | None = None,
        tp_size: int = 1,
        num_spec: int = 0,
        conv_dtype: Dtype | str | None = None,
        temporal_dtype: Dtype | str | None = None,
        timeout: float | None = None,
    ) -> CalculatedShapes:
        """Has the server compute the state shapes of a model, a family or a list of custom states.

        See `Client.calculate_state_shapes`.
        """
        call = calls.pool.calculate_state_shapes(
            model_config,
            family,
            parameters,
            states,
            conv_layout=conv_layout,
            tp_size=tp_size,
            num_spec=num_spec,
            conv_dtype=conv_dtype,
            temporal_dtype=temporal_dtype,
        )
        return await self._transport.execute(call, timeout)

    async def list_blocks(
        self,
        *,
        states: Sequence[BlockState] | None = None,
        session_id: int = 0,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> AsyncIterator[BlockPage]:
        """Lists blocks in the order of their ids, page by page; blocks may change between two pages.

        See `Client.list_blocks`.
        """
        token = ""
        while True:
            call = calls.pool.list_blocks(states, session_id, page_size, token)
            page, token = await self._transport.execute(call, timeout)
            if len(page):
                yield page
            if not token:
                return

    async def watch_blocks(
        self, cursor: WatchCursor | None = None, *, timeout: float | None = None
    ) -> AsyncGenerator[BlockChanges, None]:
        """Tells which prefixes can be found, and goes on telling what changes; see `Client.watch_blocks`."""
        request = calls.watching.watch_blocks(cursor)
        async with aclosing(self._transport.watch(request, self._transport.seconds(timeout))) as responses:
            async for response in responses:
                for changes in calls.watching.block_changes(response):
                    yield changes

    async def create_session(
        self,
        ttl: float,
        *,
        owner_key: str = "",
        take_over: bool = False,
        resume_within: float = 0.0,
        on_lost: Callable[[AsyncSession, StatepoolError], object] | None = None,
        on_recreated: Callable[[AsyncSession], object] | None = None,
        timeout: float | None = None,
    ) -> AsyncSession:
        """Opens a session and keeps it alive in the background until it is closed; see `Client.create_session`."""
        terms = Terms(
            ttl=ttl,
            owner_key=owner_key,
            take_over=take_over,
            resume_within=resume_within,
            on_lost=on_lost,
            on_recreated=on_recreated,
        )
        return await self._opener.open(terms, timeout)

    async def get_session(self, session_id: int, *, timeout: float | None = None) -> SessionInfo:
        """Returns one session, anybody's; see `Client.get_session`."""
        return await self._transport.execute(calls.sessions.get_session(session_id), timeout)

    async def list_sessions(self, *, page_size: int = 0, timeout: float | None = None) -> AsyncIterator[SessionInfo]:
        """Lists live sessions in the order of their ids; see `Client.list_sessions`."""
        token = ""
        while True:
            page, token = await self._transport.execute(calls.sessions.list_sessions(page_size, token), timeout)
            for session in page:
                yield session
            if not token:
                return

    async def list_sequences(
        self, session_id: int, *, page_size: int = 0, timeout: float | None = None
    ) -> AsyncIterator[SequencePage]:
        """Lists the sequences of a session in the order of their ids; see `Client.list_sequences`."""
        token = ""
        while True:
            call = calls.sequences.list_sequences(session_id, page_size, token)
            page, token = await self._transport.execute(call, timeout)
            yield page
            if not token:
                return

    async def compute_copy_specs(
        self,
        block_ids: BlockIds,
        cur_block_idx: ArrayLike,
        num_accepted_tokens: ArrayLike,
        *,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> CopySpecs:
        """Computes where the state of the last accepted token begins, per request and state tensor.

        See `Client.compute_copy_specs`.
        """
        call = calls.blocks.compute_copy_specs(block_ids, cur_block_idx, num_accepted_tokens, rank_index)
        return await self._transport.execute(call, timeout)

    async def attach_pool(
        self,
        *,
        rank_index: int = 0,
        read_only: bool = False,
        layout_fingerprint: str = "",
        max_element_offset: int | None = None,
        timeout: float | None = None,
    ) -> AttachOffer:
        """Prepares the attachment of a process on the server's machine; see `Client.attach_pool`."""
        call = calls.attachments.attach_pool(rank_index, read_only, layout_fingerprint, max_element_offset)
        return await self._transport.execute(call, timeout)

    async def detach_pool(self, attachment_id: int, token: bytes, *, timeout: float | None = None) -> int:
        """Ends an attachment on its process's word; see `Client.detach_pool`."""
        return await self._transport.execute(calls.attachments.detach_pool(attachment_id, token), timeout)

    async def list_attachments(self, *, timeout: float | None = None) -> list[Attachment]:
        """Lists the attached processes in the order of their ids; see `Client.list_attachments`."""
        return await self._transport.execute(calls.attachments.list_attachments(), timeout)

    async def verify_integrity(self, *, timeout: float | None = None) -> IntegrityReport:
        """Compares the bytes of every committed block with its checksum; see `Client.verify_integrity`."""
        return await self._transport.execute(calls.pool.verify_integrity(), timeout)

    async def release_quarantine(
        self, attachment_id: int = 0, *, condemned: bool = False, timeout: float | None = None
    ) -> int:
        """Ends quarantine on the operator's word; see `Client.release_quarantine`."""
        return await self._transport.execute(calls.attachments.release_quarantine(attachment_id, condemned), timeout)

    async def drain(self, grace: float = 10.0, *, stop: bool = False, timeout: float | None = None) -> DrainProgress:
        """Takes the server out of service, and waits until its sequences have finished; see `Client.drain`."""
        return await self._transport.execute(calls.pool.drain(grace, stop), timeout)

    async def close(self) -> None:
        """Ends the client's sessions, as well as it can, and the connection; closing twice does nothing.

        See `Client.close`.
        """
        if self._transport.leases.is_foreign():
            return
        self._opener.close()
        try:
            await self._keeper.close()
            is_reachable = True
            for lease in self._transport.leases.live():
                if is_reachable:  # a dead server costs one deadline, not one per session
                    is_reachable = await self._transport.release(lease)
                else:
                    self._transport.leases.give_back(lease)
        finally:
            await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport.target}, {len(self._transport.leases.live())} sessions>"
