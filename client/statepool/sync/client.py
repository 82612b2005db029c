"""The client with blocking calls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc

from statepool import calls
from statepool.channel import DEFAULT_TIMEOUT_SECONDS, ChannelOptions
from statepool.errors import StatepoolError
from statepool.lease import Terms
from statepool.security import Security, Tls
from statepool.sync.endpoint import Endpoint
from statepool.sync.keeper import Keeper
from statepool.sync.opening import Opener
from statepool.sync.session import Session
from statepool.sync.transport import Transport

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


class Client(Endpoint):
    """Talks to one pool, with blocking calls; safe to use from threads.

    Nothing is connected before the first call, and a lost connection comes back by itself. A unary call that fails as
    UNAVAILABLE is repeated up to four times within its deadline. It keeps its request id, so that it takes effect once,
    and a budget bounds all retries, so that they do not add to an outage (`statepool.retries`). Methods raise the
    subclasses of `StatepoolError` that they list, and any of them `UnavailableError` and `DeadlineExceededError`. A
    client belongs to the process that made it: after a fork, make another.
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
        """Makes a client.

        Args:
            target: Where the server listens, in gRPC's naming: ``unix:///run/statepool/statepool.sock``, ``host:port``.
            timeout: Deadline in seconds of every call that names none; whatever is longer than a year, as
                ``math.inf``, is a year.
            tls: TLS; None is plain text, which only Unix sockets and loopback hosts are given.
            token: Bearer token by which the server knows this client; sent over TLS and Unix sockets only.
            insecure: Allows plain text over a network.
            options: gRPC channel arguments; they win over the client's own.

        Raises:
            ValueError: Plain text over a network without ``insecure=True``, a token in plain text, or a timeout that is
                negative or not a number, as in every call.
            OSError: A file of `Tls` cannot be read.
        """
        security = Security(tls=tls, token=token, insecure=insecure)
        super().__init__(Transport(target, timeout, security, options))
        self._keeper = Keeper(self._transport)
        self._opener = Opener(self._transport, self._keeper)

    @property
    def stats(self) -> ClientStats:
        """What has become of this client's calls and sessions so far."""
        return self._transport.stats

    def get_server_info(self, *, timeout: float | None = None) -> ServerInfo:
        """Returns what the server process is and since when it runs."""
        return self._transport.execute(calls.pool.get_server_info(), timeout)

    def get_metrics(self, *, timeout: float | None = None) -> Metrics:
        """Returns every metric of the server at this moment; Prometheus need not scrape it."""
        return self._transport.execute(calls.pool.get_metrics(), timeout)

    def calculate_state_shapes(
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

        `statepool.shapes` and `statepool.models` compute the same in this process.

        Args:
            model_config: A Hugging Face config.json, as text or as a mapping.
            family: A family, for example "mamba2".
            parameters: Parameters of the family, by the names of `statepool.shapes.MambaStateShapeCalculator`.
            states: States of a custom model.
            conv_layout: Order of conv dimensions; None: the server's own.
            tp_size: With model_config: tensor-parallel size.
            num_spec: With model_config: speculative tokens.
            conv_dtype: With model_config: element type of conv states; None: the model's.
            temporal_dtype: With model_config: element type of temporal states; None: what the model asks for, else as
                conv_dtype.
            timeout: Deadline in seconds.

        Raises:
            BadFieldError: A parameter has no meaning, the model type is unknown, or the config lacks a key.
            ValueError: Not exactly one of model_config, family and states is given, or a family, parameter, layout or
                dtype is unknown.
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
        return self._transport.execute(call, timeout)

    def list_blocks(
        self,
        *,
        states: Sequence[BlockState] | None = None,
        session_id: int = 0,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[BlockPage]:
        """Lists blocks in the order of their ids, page by page; blocks may change between two pages.

        Args:
            states: Only blocks in one of these states; None: all but free ones.
            session_id: Only blocks that this session holds; 0: any.
            page_size: Most rows of a page; 0: the server's limit.
            timeout: Deadline in seconds of each page.

        Yields:
            Pages of at least one row.
        """
        token = ""
        while True:
            call = calls.pool.list_blocks(states, session_id, page_size, token)
            page, token = self._transport.execute(call, timeout)
            if len(page):
                yield page
            if not token:
                return

    def watch_blocks(
        self, cursor: WatchCursor | None = None, *, timeout: float | None = None
    ) -> Generator[BlockChanges, None, None]:
        """Tells which prefixes can be found, and goes on telling what changes, until the iterator is closed.

        What is told was true a moment ago; `lookup_prefix` says what is true, and holds it. `statepool.disagg` has a
        directory that keeps what several servers tell.

        Args:
            cursor: `BlockChanges.cursor` of the last changes that are known; None: begins with a snapshot.
            timeout: Seconds without a message after which the server is given up; it sends one at least every second.
                None: the client's.

        Yields:
            Changes, in the order in which they happened.

        Raises:
            IncarnationMismatchError, EventCursorCompactedError: What is behind the cursor can no longer be told; begin
                with a snapshot.
            QuotaExceededError: As many clients watch as are allowed.
            UnavailableError: The connection is lost, or nothing is heard; go on behind the last cursor.
        """
        request = calls.watching.watch_blocks(cursor)
        for response in self._transport.watch(request, self._transport.seconds(timeout)):
            yield from calls.watching.block_changes(response)

    def create_session(
        self,
        ttl: float,
        *,
        owner_key: str = "",
        take_over: bool = False,
        resume_within: float = 0.0,
        on_lost: Callable[[Session, StatepoolError], object] | None = None,
        on_recreated: Callable[[Session], object] | None = None,
        timeout: float | None = None,
    ) -> Session:
        """Opens a session and keeps it alive in the background until it is closed.

        Args:
            ttl: Seconds that the lease lasts after its last renewal; it is renewed every third of it.
            owner_key: A name under which the session can be taken over, for example by a restarted owner.
            take_over: Whether to take over a live session of the same owner key, with its blocks.
            resume_within: Seconds after the lease's end in which the session may be resumed: by a server that was
                restarted and has recovered its state, or that was out of reach. Until then calls wait for it, within
                their deadlines, and schedulers send again what was not answered. 0: a server that was restarted, or a
                lease that could not be renewed in time, loses the session at once.
            on_lost: Called once with the session and the reason if the lease is lost: from a background thread, or from
                the thread whose call found out. It must not block.
            on_recreated: Called from a thread of its own with a new session of the same terms. It is opened after this
                one was lost, unless to a take-over, as soon as a server answers that has room, and the owner key is
                free; it has no block or sequence of the lost one. None: no session is opened.
            timeout: Deadline in seconds.

        Raises:
            ValueError: resume_within is negative or not a number.
            OwnerKeyInUseError: A live session has the key, and take_over is not set.
            QuotaExceededError: The server holds as many sessions as it may.
            BadFieldError: The server allows no such ttl.
        """
        terms = Terms(
            ttl=ttl,
            owner_key=owner_key,
            take_over=take_over,
            resume_within=resume_within,
            on_lost=on_lost,
            on_recreated=on_recreated,
        )
        return self._opener.open(terms, timeout)

    def get_session(self, session_id: int, *, timeout: float | None = None) -> SessionInfo:
        """Returns one session, anybody's.

        Raises:
            SessionNotFoundError, SessionExpiredError: There is no such session.
        """
        return self._transport.execute(calls.sessions.get_session(session_id), timeout)

    def list_sessions(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[SessionInfo]:
        """Lists live sessions in the order of their ids.

        Args:
            page_size: Most sessions asked for at a time; 0: the server's limit.
            timeout: Deadline in seconds of each page.
        """
        token = ""
        while True:
            page, token = self._transport.execute(calls.sessions.list_sessions(page_size, token), timeout)
            yield from page
            if not token:
                return

    def list_sequences(
        self, session_id: int, *, page_size: int = 0, timeout: float | None = None
    ) -> Iterator[SequencePage]:
        """Lists the sequences of a session in the order of their ids: tables, counters, outstanding steps.

        Enough for a new owner to go on after a take-over.

        Args:
            session_id: The session.
            page_size: Most sequences asked for at a time; 0: the server's limit.
            timeout: Deadline in seconds of each page.

        Raises:
            SessionNotFoundError, SessionExpiredError: There is no such session.
        """
        token = ""
        while True:
            call = calls.sequences.list_sequences(session_id, page_size, token)
            page, token = self._transport.execute(call, timeout)
            yield page
            if not token:
                return

    def compute_copy_specs(
        self,
        block_ids: BlockIds,
        cur_block_idx: ArrayLike,
        num_accepted_tokens: ArrayLike,
        *,
        rank_index: int = 0,
        timeout: float | None = None,
    ) -> CopySpecs:
        """Computes where the state of the last accepted token begins, per request and state tensor.

        Args:
            block_ids: Block table of one request ``[n]``, or a list of tables of any lengths.
            cur_block_idx: Index in its table of each request's running block; a single number applies to all.
            num_accepted_tokens: Accepted tokens of each request, from 1; a single number applies to all.
            rank_index: Index into `Pool.tp_ranks` of the rank whose addresses are wanted.
            timeout: Deadline in seconds.

        Raises:
            BlockIndexOutOfRangeError: An index past the end of a table, of the pool, or of a conv state.
            DsSpecNotContiguousError: More than one accepted token in conv layout DS.
            BatchTooLargeError: More than ``Limits.max_copy_specs`` entries.
            ValueError: Something is not a column of integers from 0 to 2**32 - 1.
        """
        call = calls.blocks.compute_copy_specs(block_ids, cur_block_idx, num_accepted_tokens, rank_index)
        return self._transport.execute(call, timeout)

    def attach_pool(
        self,
        *,
        rank_index: int = 0,
        read_only: bool = False,
        layout_fingerprint: str = "",
        max_element_offset: int | None = None,
        timeout: float | None = None,
    ) -> AttachOffer:
        """Prepares the attachment of a process on the server's machine; `statepool.torch.attach` does all of it.

        Args:
            rank_index: Index into `Pool.tp_ranks`.
            read_only: Whether the process only reads.
            layout_fingerprint: Fingerprint of the layout that the process expects; empty: whatever the pool has.
            max_element_offset: Largest element offset in a state tensor that the process's kernels can address; None:
                any.
            timeout: Deadline in seconds.

        Raises:
            BadFieldError: No such rank index.
            LayoutMismatchError: Another fingerprint, or a state tensor that reaches further.
            FeatureUnavailableError: The arena of the rank cannot be shared with other processes.
            QuotaExceededError: As many processes are attached, or about to be, as are allowed.
            ValueError: A number that is negative, or too large for the wire.
        """
        call = calls.attachments.attach_pool(rank_index, read_only, layout_fingerprint, max_element_offset)
        return self._transport.execute(call, timeout)

    def detach_pool(self, attachment_id: int, token: bytes, *, timeout: float | None = None) -> int:
        """Ends an attachment on its process's word that it cannot write the arena any more.

        Needed only where the process's own connection is broken, over which it normally says so.

        Args:
            attachment_id: The attachment.
            token: `AttachOffer.token` with which it was made.
            timeout: Deadline in seconds.

        Returns:
            Blocks that left quarantine; 0 where it was sent again, since the answer was lost.

        Raises:
            AttachmentNotFoundError: It has ended already, or never was.
            PeerUntrustedError: It was made with another token.
        """
        return self._transport.execute(calls.attachments.detach_pool(attachment_id, token), timeout)

    def list_attachments(self, *, timeout: float | None = None) -> list[Attachment]:
        """Lists the attached processes in the order of their ids."""
        return self._transport.execute(calls.attachments.list_attachments(), timeout)

    def verify_integrity(self, *, timeout: float | None = None) -> IntegrityReport:
        """Compares the bytes of every committed block with the checksum taken when it was committed.

        A block that has changed cannot be found, read or copied any more (`ChecksumMismatchError`), and is not handed
        out again until ``release_quarantine(condemned=True)``.

        Args:
            timeout: Deadline in seconds; reading the whole memory may take longer than the client's. What was found
                until then stays found.

        Raises:
            FeatureUnavailableError: The server takes no checksums.
        """
        return self._transport.execute(calls.pool.verify_integrity(), timeout)

    def release_quarantine(
        self, attachment_id: int = 0, *, condemned: bool = False, timeout: float | None = None
    ) -> int:
        """Ends quarantine on the operator's word: an attachment is treated as if it had answered every fence so far.

        Safe only when its process will not write for a session that is lost. It stays attached, and later fences wait
        for it again.

        Args:
            attachment_id: The attachment; 0: all of them.
            condemned: Release the blocks that were found changed, and nothing else.
            timeout: Deadline in seconds.

        Returns:
            Blocks that left quarantine.

        Raises:
            AttachmentNotFoundError: No such attachment.
        """
        return self._transport.execute(calls.attachments.release_quarantine(attachment_id, condemned), timeout)

    def drain(self, grace: float = 10.0, *, stop: bool = False, timeout: float | None = None) -> DrainProgress:
        """Takes the server out of service, and waits until its sequences have finished.

        No session, attachment or sequence begins any more (`DrainingError`), health is not serving, and schedulers are
        told (`Scheduler.is_going_away`); what has begun goes on. Draining cannot be taken back; a second
        call waits with the first.

        Args:
            grace: Seconds to wait for the sequences.
            stop: End the server, with exit code 0, when they have finished or the grace time is over. Else it stays
                drained, and takes nothing from anybody, until it is stopped.
            timeout: Deadline in seconds, on top of the grace time.

        Returns:
            What the server still holds.

        Raises:
            ValueError: A negative or endless grace time.
        """
        return self._transport.execute(calls.pool.drain(grace, stop), timeout)

    def close(self) -> None:
        """Ends the client's sessions, as well as it can, and the connection; closing twice does nothing."""
        if self._transport.leases.is_foreign():
            return
        try:
            self._keeper.close()
            is_reachable = True
            for lease in self._transport.leases.live():
                if is_reachable:  # a dead server costs one deadline, not one per session
                    is_reachable = self._transport.release(lease)
                else:
                    self._transport.leases.give_back(lease)
        finally:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._transport.target}, {len(self._transport.leases.live())} sessions>"
