"""The one error tree of statepool: raised by the server, received by the client as the same class.

    StatepoolError
    ├── InvalidArgumentError      BadFieldError, ColumnLengthMismatchError, BatchTooLargeError, RequestIdReusedError
    ├── OutOfRangeError           BlockIndexOutOfRangeError, EventCursorCompactedError
    ├── NotFoundError             SessionNotFoundError, SessionExpiredError, SequenceNotFoundError,
    │                             AttachmentNotFoundError, TransferNotFoundError
    ├── AlreadyExistsError        OwnerKeyInUseError, SequenceExistsError
    ├── FailedPreconditionError   IncarnationMismatchError, LayoutMismatchError, BlockNotOwnedError,
    │                             BlockNotWritableError, BlockInSequenceError, BlockBusyError,
    │                             BoundaryNotWrittenError, StepOutOfOrderError
    ├── AbortedError              GenerationStaleError, SessionFencedError, StreamReplacedError, PeerLostError
    │                             (made by the client:) GroupError, DivergedError
    ├── ResourceExhaustedError    PoolExhaustedError, QuotaExceededError
    ├── UnavailableError          OverloadedError, DrainingError, StreamStalledError, CopiesStalledError
    ├── UnimplementedError        DsSpecNotContiguousError, FeatureUnavailableError
    ├── DataLossError             ChecksumMismatchError, StateLostError
    ├── UnauthenticatedError      PeerUntrustedError
    ├── PermissionDeniedError     RoleForbiddenError
    ├── DeadlineExceededError     (made by gRPC: the caller's deadline passed)
    └── CancelledError            (made by gRPC: the caller cancelled)

A class of the middle column stands for a gRPC status code; it is what a caller gets when the answer carries that code
without a reason (a refused connection is a bare ``UnavailableError``). A leaf stands for one *reason*, the
``google.rpc.ErrorInfo.reason`` of domain ``statepool`` in the status details.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from statepool.outcomes import StepOutcome

DOMAIN = "statepool"
"""``google.rpc.ErrorInfo.domain`` of every error of this service."""


class Code(IntEnum):
    """gRPC status codes by number (``google.rpc.Code``), so that the domain needs no grpc import."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatepoolError(Exception):
    """Is the base of everything the service or the client library raises on purpose.

    Attributes:
        code: The gRPC status code, the same for all errors of a class.
        reason: What tells the class from others of the same code, ``ErrorInfo.reason`` of the answer, or "" for none.
        message: What went wrong, for people.
        field: The request field at fault, or "" where no single field is.
        retry_after: Seconds after which the same call may succeed, or None where a retry does not help.
        metadata: Machine-readable facts (numbers as decimal strings), the ``ErrorInfo.metadata`` of the answer.
    """

    code: ClassVar[Code] = Code.UNKNOWN
    reason: ClassVar[str] = ""

    def __init__(
        self, message: str, *, field: str = "", retry_after: float | None = None, **metadata: str | int
    ) -> None:
        """Builds the error; keyword arguments beyond the named ones become ``metadata``."""
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after
        self.metadata: Mapping[str, str] = {key: str(value) for key, value in metadata.items()}

    def __repr__(self) -> str:
        reason = f" {self.reason}" if self.reason else ""
        facts = "".join(f", {key}={value}" for key, value in self.metadata.items())
        return f"<{type(self).__name__}{reason}: {self.message}{facts}>"


class InvalidArgumentError(StatepoolError):
    """The request is wrong in itself; sending it again cannot help."""

    code = Code.INVALID_ARGUMENT


class BadFieldError(InvalidArgumentError):
    """A field has a value that is not allowed; ``field`` names it."""

    reason = "BAD_FIELD"


class ColumnLengthMismatchError(InvalidArgumentError):
    """Parallel columns of a request have different lengths; ``field`` names the odd one."""

    reason = "COLUMN_LENGTH_MISMATCH"


class BatchTooLargeError(InvalidArgumentError):
    """A request is larger than one of the server's `Limits`; ``field`` and ``metadata["limit"]`` tell which."""

    reason = "BATCH_TOO_LARGE"


class RequestIdReusedError(InvalidArgumentError):
    """A ``request_id`` was seen before with a different request."""

    reason = "REQUEST_ID_REUSED"


class OutOfRangeError(StatepoolError):
    """An index lies outside what exists."""

    code = Code.OUT_OF_RANGE


class BlockIndexOutOfRangeError(OutOfRangeError):
    """A block id is not in the pool (or is the null block), or an index is past the end of a block list or block."""

    reason = "BLOCK_INDEX_OUT_OF_RANGE"


class EventCursorCompactedError(OutOfRangeError):
    """The changes behind a cursor are no longer kept: begin again with a snapshot."""

    reason = "EVENT_CURSOR_COMPACTED"


class NotFoundError(StatepoolError):
    """The named thing does not exist."""

    code = Code.NOT_FOUND


class SessionNotFoundError(NotFoundError):
    """No session has this id: it never existed, was deleted, or expired long ago."""

    reason = "SESSION_NOT_FOUND"


class SessionExpiredError(NotFoundError):
    """The session's lease ran out; its references are gone."""

    reason = "SESSION_EXPIRED"


class SequenceNotFoundError(NotFoundError):
    """The session has no sequence of this id."""

    reason = "SEQUENCE_NOT_FOUND"


class AttachmentNotFoundError(NotFoundError):
    """No attachment has this id: it has ended, or never was."""

    reason = "ATTACHMENT_NOT_FOUND"


class TransferNotFoundError(NotFoundError):
    """The transfer has ended, never was, or its token is another."""

    reason = "TRANSFER_NOT_FOUND"


class AlreadyExistsError(StatepoolError):
    """The thing to create exists."""

    code = Code.ALREADY_EXISTS


class OwnerKeyInUseError(AlreadyExistsError):
    """A live session has this owner key and the request did not ask to take it over."""

    reason = "OWNER_KEY_IN_USE"


class SequenceExistsError(AlreadyExistsError):
    """The session has a sequence of this id already."""

    reason = "SEQUENCE_EXISTS"


class FailedPreconditionError(StatepoolError):
    """The state of the pool does not allow the call."""

    code = Code.FAILED_PRECONDITION


class IncarnationMismatchError(FailedPreconditionError):
    """The request was meant for another server process.

    Resume the session if the new server continues its state, else create it anew.
    """

    reason = "INCARNATION_MISMATCH"


class LayoutMismatchError(FailedPreconditionError):
    """The caller's layout fingerprint is not the pool's."""

    reason = "LAYOUT_MISMATCH"


class BlockNotOwnedError(FailedPreconditionError):
    """The session holds no reference to the block (or not as many as it gives back)."""

    reason = "BLOCK_NOT_OWNED"


class BlockNotWritableError(FailedPreconditionError):
    """The block is committed, and so immutable."""

    reason = "BLOCK_NOT_WRITABLE"


class BlockInSequenceError(FailedPreconditionError):
    """The block stands in a sequence's block table, which only steps may take it out of."""

    reason = "BLOCK_IN_SEQUENCE"


class BlockBusyError(FailedPreconditionError):
    """The call would disturb a copy, read or write of the block that is running, or the block is in quarantine."""

    reason = "BLOCK_BUSY"


class BoundaryNotWrittenError(FailedPreconditionError):
    """The tokens written through are not the boundary that the commit names."""

    reason = "BOUNDARY_NOT_WRITTEN"


class StepOutOfOrderError(FailedPreconditionError):
    """A step's number is neither the next nor one just applied, or a sequence is not at the point that it needs."""

    reason = "STEP_OUT_OF_ORDER"


class AbortedError(StatepoolError):
    """The caller acted on a state of the world that has passed."""

    code = Code.ABORTED


class GenerationStaleError(AbortedError):
    """A block ref is stale: the block was freed (and maybe given to somebody else) since the caller got it."""

    reason = "GENERATION_STALE"


class SessionFencedError(AbortedError):
    """Another client took the session over: the epoch of the request has passed."""

    reason = "SESSION_FENCED"


class StreamReplacedError(AbortedError):
    """The session opened another Schedule stream, which ends this one: a session has one at a time."""

    reason = "STREAM_REPLACED"


class PeerLostError(AbortedError):
    """The server that a transfer comes from cannot be reached, or has given nothing for too long."""

    reason = "PEER_LOST"


class DivergedError(AbortedError):
    """A server of a group has decided otherwise than the others; told by the client, within a `GroupError`."""


class GroupError(AbortedError):
    """A group of servers can go on no more: one of them is lost, or has decided otherwise than the others.

    Attributes:
        failures: What has become of each member that is at fault, by its target; the first is the error's cause.
    """

    def __init__(self, message: str, failures: Mapping[str, StatepoolError] | None = None) -> None:
        super().__init__(message)
        self.failures: Mapping[str, StatepoolError] = dict(failures or {})

    @property
    def member(self) -> str:
        """Target of the first member that is at fault, or "" where none is named."""
        return next(iter(self.failures), "")


class ResourceExhaustedError(StatepoolError):
    """Something bounded is used up."""

    code = Code.RESOURCE_EXHAUSTED


class PoolExhaustedError(ResourceExhaustedError):
    """Not enough free and evictable blocks; the metadata has ``free``, ``evictable`` and ``requested``."""

    reason = "POOL_EXHAUSTED"


class QuotaExceededError(ResourceExhaustedError):
    """A limit is reached: of the server (such as sessions) or of the caller's tenant (such as blocks, calls, rate)."""

    reason = "QUOTA_EXCEEDED"


class UnavailableError(StatepoolError):
    """The server cannot take the call now; the same call may succeed later."""

    code = Code.UNAVAILABLE


class OverloadedError(UnavailableError):
    """A queue of the server is full."""

    reason = "OVERLOADED"


class DrainingError(UnavailableError):
    """The server is shutting down and takes no new work."""

    reason = "DRAINING"


class StreamStalledError(UnavailableError):
    """The client of a stream took or sent nothing for so long that the server has ended the stream."""

    reason = "STREAM_STALLED"


class CopiesStalledError(UnavailableError):
    """The pool's memory work stands still, as on a device that hangs; its health is NOT_SERVING until the work ends.

    New work is refused. Work that had begun for a call takes effect when it ends: the same request id gets its answer.
    """

    reason = "COPIES_STALLED"


class UnimplementedError(StatepoolError):
    """The server cannot do this at all."""

    code = Code.UNIMPLEMENTED


class DsSpecNotContiguousError(UnimplementedError):
    """A DS conv state after more than one accepted token is not one contiguous region, so no copy spec exists."""

    reason = "DS_SPEC_NOT_CONTIGUOUS"


class FeatureUnavailableError(UnimplementedError):
    """This pool was started without the feature that the call needs."""

    reason = "FEATURE_UNAVAILABLE"


class DataLossError(StatepoolError):
    """Bytes are wrong or gone."""

    code = Code.DATA_LOSS


class ChecksumMismatchError(DataLossError):
    """Bytes do not match their checksum: a chunk was damaged on its way, or a committed block has changed.

    Such a block is condemned: nobody is given it or can use it any more.
    """

    reason = "CHECKSUM_MISMATCH"


class StateLostError(DataLossError):
    """The server could not copy, zero or receive states: what their blocks hold is not what they should.

    Where it comes from an engine step, the step was applied all the same, and its `outcome` holds for all sequences but
    those that are lost: no pass may be run on these, and they can only be finished. With a field, a later step has
    named such a sequence, and was not applied.

    Attributes:
        outcome: What the step has come to; None: no step was applied.
    """

    reason = "STATE_LOST"
    outcome: StepOutcome | None = None

    @classmethod
    def of(cls, outcome: StepOutcome) -> StateLostError:
        """Builds the error of a step that was applied and has lost sequences."""
        error = cls(f"the copies of step {outcome.step} failed: sequences {list(outcome.lost_sequence_ids)} are lost")
        error.outcome = outcome
        return error

    @property
    def sequence_ids(self) -> tuple[int, ...]:
        """The lost sequences of the step, ascending."""
        return () if self.outcome is None else self.outcome.lost_sequence_ids


class UnauthenticatedError(StatepoolError):
    """The caller has not proven that it may do this."""

    code = Code.UNAUTHENTICATED


class PeerUntrustedError(UnauthenticatedError):
    """Neither certificate nor token says who calls, or a process or a server is not one to be trusted.

    A process that would attach belongs to another user, or its token was never given out, is used up or too old; or no
    states may be received from the server that is named.
    """

    reason = "PEER_UNTRUSTED"


class PermissionDeniedError(StatepoolError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class RoleForbiddenError(PermissionDeniedError):
    """The caller's roles do not allow the call, or what it names belongs to another tenant."""

    reason = "ROLE_FORBIDDEN"


class DeadlineExceededError(StatepoolError):
    """The caller's deadline passed before the answer came; whether the call took effect is unknown."""

    code = Code.DEADLINE_EXCEEDED


class CancelledError(StatepoolError):
    """The call was cancelled by its caller."""

    code = Code.CANCELLED


def _descendants(root: type[StatepoolError]) -> Iterator[type[StatepoolError]]:
    for child in root.__subclasses__():
        yield child
        yield from _descendants(child)


BY_REASON: Mapping[str, type[StatepoolError]] = {cls.reason: cls for cls in _descendants(StatepoolError) if cls.reason}
"""Error class of each reason."""

BY_CODE: Mapping[int, type[StatepoolError]] = {cls.code: cls for cls in StatepoolError.__subclasses__()}
"""Error class of each status code, for answers without a reason."""
