"""A scheduler with blocking calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from statepool.channel import error_of_cut_rpc, seconds_left
from statepool.errors import StatepoolError, UnavailableError
from statepool.handle import SchedulerHandle
from statepool.lease import Lease
from statepool.sequences import Admission, Commits, Execution, Notice, Schedules
from statepool.sync.transport import ScheduleStream, Transport
from statepool.v1.sequence_pb2 import Notice as NoticeMessage
from statepool.v1.sequence_pb2 import ScheduleRequest, ScheduleResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from statepool.outcomes import StepOutcome


class _Stream:
    """One Schedule stream: requests go into a queue, answers and the stream's end go into the scheduler's inbox.

    gRPC's blocking streams can only be waited for without a limit, so a thread of their own waits.
    """

    def __init__(
        self,
        transport: Transport,
        requests: Iterable[ScheduleRequest],
        inbox: SimpleQueue[_Event],
        noticed: Callable[[NoticeMessage], None],
    ) -> None:
        self._requests: SimpleQueue[ScheduleRequest | None] = SimpleQueue()
        for request in requests:
            self._requests.put(request)
        self._inbox = inbox
        self._noticed = noticed
        self._responses: ScheduleStream = transport.schedule(iter(self._requests.get, None))
        Thread(target=self._receive, name="statepool-schedule-responses", daemon=True).start()

    def send(self, request: ScheduleRequest) -> None:
        self._requests.put(request)

    def close(self) -> None:
        self._responses.cancel()

    def _receive(self) -> None:
        try:
            for response in self._responses:
                if response.HasField("notice"):
                    self._noticed(response.notice)
                else:
                    self._inbox.put((self, response))
            end: StatepoolError = UnavailableError("the server ended the stream")
        except grpc.RpcError as error:
            end = error_of_cut_rpc(error)
        self._requests.put(None)  # lets gRPC's own thread go
        self._inbox.put((self, end))


_Event = tuple[_Stream | None, ScheduleResponse | StatepoolError | None]
"""An answer of a stream, or its end; without a stream, a reason to look at the lease again."""


class Scheduler(SchedulerHandle):
    """Sends engine steps over one stream and receives their outcomes.

    Made by `Session.scheduler`; a context manager that opens and closes the stream. A session has one scheduler at a
    time, used by one thread at a time; another one's stream ends this one for good (`StreamReplacedError`).

    A lost connection is opened again within the deadline of the call that waits, and the steps that are not answered
    are sent again under their numbers: the server applies each of them once. When a deadline passes, the step stays
    unreceived and the stream stays open: `receive` gives the outcome later. Every method raises a `StatepoolError`; in
    any case `UnavailableError` (the connection did not come back within the deadline), `DeadlineExceededError`, and
    once the session is lost the errors of every call of `Session`.
    """

    def __init__(
        self, transport: Transport, lease: Lease, execution: Execution, on_notice: Callable[[Notice], object] | None
    ) -> None:
        super().__init__(transport.target, transport.leases, lease, execution, on_notice)
        self._transport = transport
        self._inbox: SimpleQueue[_Event] = SimpleQueue()
        self._stream: _Stream | None = None
        lease.listen(self._lease_changed)

    def open(self, *, timeout: float | None = None) -> None:
        """Opens the stream, from whose answer the steps are numbered; done by the context manager.

        Args:
            timeout: Deadline in seconds; None: the client's.
        """
        deadline = self._transport.deadline(timeout)
        while not self._pipeline.is_open:
            self._advance(deadline)

    def step(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
        timeout: float | None = None,
    ) -> StepOutcome:
        """Sends an engine step and receives its outcome; applied in the order commits, finishes, admissions, schedules.

        Args:
            admit: Sequences to begin.
            schedule: Forward passes to come.
            commit: Results of forward passes.
            finish: Ids of sequences to end, committed or not, ``[n]``.
            settled_step: Every step up to this one was finished by every rank's worker, planned copies included; None:
                the step before this one, as in an engine that waits for its worker.
            partial_admission: Whether to admit only as many, from the first on, as there are blocks for.
            timeout: Deadline in seconds; None: the client's.

        Returns:
            What became of the step. With `Execution.SERVER` its copies are done.

        Raises:
            PoolExhaustedError: The step needs more blocks than there are; ``metadata`` has ``requested``, ``free``,
                ``evictable``. Preempt (finish) sequences and step again. As with every refusal nothing has changed, and
                the number is not used up.
            SequenceNotFoundError, SequenceExistsError: A row names no sequence, or an admission one that lives.
            StepOutOfOrderError: A sequence is scheduled with an outstanding step, or committed without one.
            BoundaryNotWrittenError: A prefix hash for a boundary at which no state stands.
            BlockNotOwnedError, BlockNotWritableError, BlockBusyError, BlockInSequenceError, GenerationStaleError,
            BlockIndexOutOfRangeError: An imported block, or one that a copy needs, cannot be used.
            QuotaExceededError: More than ``Limits.max_sequences``.
            ChecksumMismatchError: The bytes of a block have changed since it was committed. An admission would have
                begun with it: step again, it finds another or none. A copy needs it: finish the sequence.
            DrainingError: The server is going to stop and admits nothing more.
            BadFieldError, ColumnLengthMismatchError, BatchTooLargeError: The step is wrong in itself; ``field`` and
                ``metadata["row"]`` say where.
            ValueError: A column is not integers, or would be wrapped around by the wire.
            RuntimeError: A step was not received yet, or the scheduler is not open.
        """
        if not self._pipeline.is_idle:
            raise RuntimeError(f"steps {self.unreceived_steps} were not received yet")
        seconds = self._transport.seconds(timeout)
        self.send(
            admit=admit,
            schedule=schedule,
            commit=commit,
            finish=finish,
            settled_step=settled_step,
            partial_admission=partial_admission,
        )
        return self.receive(timeout=seconds)

    def send(
        self,
        *,
        admit: Sequence[Admission] = (),
        schedule: Schedules | None = None,
        commit: Commits | None = None,
        finish: ArrayLike = (),
        settled_step: int | None = None,
        partial_admission: bool = False,
    ) -> int:
        """Sends an engine step without waiting for its outcome, for engines that overlap; arguments as `step`.

        Two steps may be unreceived. If the first of them is refused, the second is refused too, with a
        `StepOutOfOrderError`, since the number before it is not used: receive both refusals, then send both again, the
        first changed so that it fits.

        Returns:
            The step's number.

        Raises:
            ValueError: A column is not integers, or would be wrapped around by the wire.
            RuntimeError: Two steps were not received yet, or the scheduler is not open.
        """
        self._check()
        number, request = self._pipeline.ask(
            {
                "admit": admit,
                "schedule": schedule,
                "commit": commit,
                "finish": finish,
                "settled_step": settled_step,
                "partial_admission": partial_admission,
            }
        )
        if self._stream is not None:  # else the next one is sent it when it is opened
            self._stream.send(request)
        return number

    def receive(self, *, timeout: float | None = None) -> StepOutcome:
        """Receives the next outcome, in the order in which the steps were sent.

        Args:
            timeout: Deadline in seconds; None: the client's. The step stays unreceived when it passes.

        Raises:
            StatepoolError: The step was refused, for the reasons of `step`.
            RuntimeError: Every step was received.
        """
        if self._pipeline.is_idle:
            raise RuntimeError("every step was received")
        deadline = self._transport.deadline(timeout)
        while not self._pipeline.has_answer:
            self._advance(deadline)
        return self._pipeline.take()

    def close(self) -> None:
        """Ends the stream; steps that were not received may have been applied or not. Closing twice does nothing."""
        self._is_closed = True
        self._lease.forget(self._lease_changed)
        self._hang_up()

    def _advance(self, deadline: float) -> None:
        """Takes the next event of the stream; opens one if there is none."""
        self._check()
        if self._stream is None:
            self._stream = self._reopen(deadline)
        try:
            stream, event = self._inbox.get(timeout=seconds_left(deadline))
        except Empty:
            self._check()
            raise self._late() from None
        if stream is not self._stream:
            return
        if isinstance(event, StatepoolError):
            self._stream = None
            self._broke(event)
        elif event is not None:
            self._took(event)

    def _lease_changed(self) -> None:
        """Ends the stream of a lost session, whose answers nobody may wait for; on any thread."""
        if self._lease.error is None:
            return
        stream = self._stream
        if stream is not None:
            stream.close()
        self._inbox.put((None, None))

    def _reopen(self, deadline: float) -> _Stream:
        self._transport.hold(self._lease, deadline)
        time.sleep(max(0.0, min(self._retry_at, deadline) - time.monotonic()))
        if self._retry_at > deadline:
            raise self._late()
        return _Stream(self._transport, self._requests(), self._inbox, self._noticed)

    def _check(self) -> None:
        self._transport.check(self._lease)
        self._check_stream()
        if self._lease.is_suspended:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
