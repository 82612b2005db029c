"""The remote procedures of statepool as values, and a call of one as a value.

A `Call` is everything about a call but its execution: which procedure, the request, and how the response reads. The
functions in `statepool.calls` build calls, and the sync and async clients execute the same ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from google.protobuf.message import Message

from statepool.errors import StatepoolError
from statepool.lease import Lease
from statepool.v1 import admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2, transfer_pb2
from statepool.v1.types_pb2 import SessionRef

Request = TypeVar("Request", bound=Message)

Metadata: TypeAlias = tuple[tuple[str, str], ...]
"""What is sent with a call beside its request."""


class Response(Protocol):
    """Every response tells which server process answered."""

    @property
    def incarnation(self) -> int:
        """The server process."""

    @classmethod
    def FromString(cls, s: bytes) -> Self:  # noqa: N802 — protobuf's name
        """Decodes a message."""


ResponseMessage = TypeVar("ResponseMessage", bound=Response)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[Request, ResponseMessage]):
    """One remote procedure."""

    service: str
    """Full name of its service."""
    name: str
    """Its name in the service."""
    request_type: type[Request]
    """Class of a request message."""
    response_type: type[ResponseMessage]
    """Class of a response message."""

    @property
    def path(self) -> str:
        """How gRPC names it."""
        return f"/{self.service}/{self.name}"

    @property
    def stub(self) -> tuple[str, Callable[[Request], bytes], Callable[[bytes], ResponseMessage]]:
        """What a gRPC channel makes a stub of: path, encoder, decoder."""
        return self.path, self.request_type.SerializeToString, self.response_type.FromString

    def call(
        self,
        request: Request,
        parse: Callable[[ResponseMessage], Result],
        *,
        extra_seconds: float = 0.0,
        gone: type[StatepoolError] | None = None,
    ) -> "Call[Result]":
        """Builds a unary call."""
        return Call(self, request, parse, extra_seconds, gone)


@dataclass(frozen=True, slots=True)
class Call(Generic[Result_co]):
    """One unary call, ready to be executed any number of times."""

    rpc: Rpc[Any, Any]
    """The procedure."""
    request: Message = field(repr=False)
    """What is sent, which may hold a token; with a ``request_id`` every attempt is the same call to the server."""
    parse: Callable[[Any], Result_co]
    """Reads the response."""
    extra_seconds: float
    """What the server may take by request on top of the caller's timeout."""
    gone: type[StatepoolError] | None
    """What a server that does not know repeated requests says when an attempt before has ended what was to be ended."""

    def under(self, lease: Lease | None) -> Message:
        """Gives what is to be sent now: the same as before, but for the incarnation if a session was resumed since."""
        if lease is not None:
            session: SessionRef = self.request.session  # type: ignore[attr-defined]
            session.incarnation = lease.opened.ref.incarnation
        return self.request

    def was_done(self, error: StatepoolError) -> bool:
        """Tells whether an attempt that was repeated and has failed says that one before it has done everything."""
        return self.gone is not None and isinstance(error, self.gone)

    def unheard(self) -> Result_co:
        """Gives the result of a call that was done and whose response was lost: one that counts nothing."""
        return self.parse(self.rpc.response_type())


_POOL = pool_pb2.DESCRIPTOR.services_by_name["PoolService"].full_name
_SESSION = session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name
_BLOCK = block_pb2.DESCRIPTOR.services_by_name["BlockService"].full_name
_SEQUENCE = sequence_pb2.DESCRIPTOR.services_by_name["SequenceService"].full_name
_TRANSFER = transfer_pb2.DESCRIPTOR.services_by_name["TransferService"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

GET_POOL = Rpc(_POOL, "GetPool", pool_pb2.GetPoolRequest, pool_pb2.GetPoolResponse)
CALCULATE_STATE_SHAPES = Rpc(
    _POOL, "CalculateStateShapes", pool_pb2.CalculateStateShapesRequest, pool_pb2.CalculateStateShapesResponse
)
LIST_BLOCKS = Rpc(_POOL, "ListBlocks", pool_pb2.ListBlocksRequest, pool_pb2.ListBlocksResponse)
WATCH_BLOCKS = Rpc(_POOL, "WatchBlocks", pool_pb2.WatchBlocksRequest, pool_pb2.WatchBlocksResponse)
ATTACH_POOL = Rpc(_POOL, "AttachPool", pool_pb2.AttachPoolRequest, pool_pb2.AttachPoolResponse)
DETACH_POOL = Rpc(_POOL, "DetachPool", pool_pb2.DetachPoolRequest, pool_pb2.DetachPoolResponse)
LIST_ATTACHMENTS = Rpc(_POOL, "ListAttachments", pool_pb2.ListAttachmentsRequest, pool_pb2.ListAttachmentsResponse)
CREATE_SESSION = Rpc(_SESSION, "CreateSession", session_pb2.CreateSessionRequest, session_pb2.CreateSessionResponse)
KEEP_ALIVE = Rpc(_SESSION, "KeepAlive", session_pb2.KeepAliveRequest, session_pb2.KeepAliveResponse)
GET_SESSION = Rpc(_SESSION, "GetSession", session_pb2.GetSessionRequest, session_pb2.GetSessionResponse)
LIST_SESSIONS = Rpc(_SESSION, "ListSessions", session_pb2.ListSessionsRequest, session_pb2.ListSessionsResponse)
DELETE_SESSION = Rpc(_SESSION, "DeleteSession", session_pb2.DeleteSessionRequest, session_pb2.DeleteSessionResponse)
ALLOCATE_BLOCKS = Rpc(_BLOCK, "AllocateBlocks", block_pb2.AllocateBlocksRequest, block_pb2.AllocateBlocksResponse)
FREE_BLOCKS = Rpc(_BLOCK, "FreeBlocks", block_pb2.FreeBlocksRequest, block_pb2.FreeBlocksResponse)
RETAIN_BLOCKS = Rpc(_BLOCK, "RetainBlocks", block_pb2.RetainBlocksRequest, block_pb2.RetainBlocksResponse)
COMMIT_BLOCKS = Rpc(_BLOCK, "CommitBlocks", block_pb2.CommitBlocksRequest, block_pb2.CommitBlocksResponse)
LOOKUP_PREFIX = Rpc(_BLOCK, "LookupPrefix", block_pb2.LookupPrefixRequest, block_pb2.LookupPrefixResponse)
EVICT_BLOCKS = Rpc(_BLOCK, "EvictBlocks", block_pb2.EvictBlocksRequest, block_pb2.EvictBlocksResponse)
COMPUTE_COPY_SPECS = Rpc(
    _BLOCK, "ComputeCopySpecs", block_pb2.ComputeCopySpecsRequest, block_pb2.ComputeCopySpecsResponse
)
COPY_BLOCKS = Rpc(_BLOCK, "CopyBlocks", block_pb2.CopyBlocksRequest, block_pb2.CopyBlocksResponse)
READ_BLOCKS = Rpc(_BLOCK, "ReadBlocks", block_pb2.ReadBlocksRequest, block_pb2.ReadBlocksResponse)
WRITE_BLOCKS = Rpc(_BLOCK, "WriteBlocks", block_pb2.WriteBlocksRequest, block_pb2.WriteBlocksResponse)
STEP = Rpc(_SEQUENCE, "Step", sequence_pb2.StepRequest, sequence_pb2.StepResponse)
SCHEDULE = Rpc(_SEQUENCE, "Schedule", sequence_pb2.ScheduleRequest, sequence_pb2.ScheduleResponse)
LIST_SEQUENCES = Rpc(_SEQUENCE, "ListSequences", sequence_pb2.ListSequencesRequest, sequence_pb2.ListSequencesResponse)
CREATE_TRANSFER = Rpc(
    _TRANSFER, "CreateTransfer", transfer_pb2.CreateTransferRequest, transfer_pb2.CreateTransferResponse
)
PULL_BLOCKS = Rpc(_TRANSFER, "PullBlocks", transfer_pb2.PullBlocksRequest, transfer_pb2.PullBlocksResponse)
DESCRIBE_TRANSFER = Rpc(
    _TRANSFER, "DescribeTransfer", transfer_pb2.DescribeTransferRequest, transfer_pb2.DescribeTransferResponse
)
SUM_TRANSFER = Rpc(_TRANSFER, "SumTransfer", transfer_pb2.SumTransferRequest, transfer_pb2.SumTransferResponse)
RECEIVE_TRANSFER = Rpc(
    _TRANSFER, "ReceiveTransfer", transfer_pb2.ReceiveTransferRequest, transfer_pb2.ReceiveTransferResponse
)
COMPLETE_TRANSFER = Rpc(
    _TRANSFER, "CompleteTransfer", transfer_pb2.CompleteTransferRequest, transfer_pb2.CompleteTransferResponse
)
CANCEL_TRANSFER = Rpc(
    _TRANSFER, "CancelTransfer", transfer_pb2.CancelTransferRequest, transfer_pb2.CancelTransferResponse
)
LIST_TRANSFERS = Rpc(_TRANSFER, "ListTransfers", transfer_pb2.ListTransfersRequest, transfer_pb2.ListTransfersResponse)
GET_SERVER_INFO = Rpc(_ADMIN, "GetServerInfo", admin_pb2.GetServerInfoRequest, admin_pb2.GetServerInfoResponse)
GET_METRICS = Rpc(_ADMIN, "GetMetrics", admin_pb2.GetMetricsRequest, admin_pb2.GetMetricsResponse)
VERIFY_INTEGRITY = Rpc(_ADMIN, "VerifyIntegrity", admin_pb2.VerifyIntegrityRequest, admin_pb2.VerifyIntegrityResponse)
RELEASE_QUARANTINE = Rpc(
    _ADMIN, "ReleaseQuarantine", admin_pb2.ReleaseQuarantineRequest, admin_pb2.ReleaseQuarantineResponse
)
DRAIN = Rpc(_ADMIN, "Drain", admin_pb2.DrainRequest, admin_pb2.DrainResponse)

RPCS: tuple[Rpc[Any, Any], ...] = tuple(value for value in list(globals().values()) if isinstance(value, Rpc))
"""Every remote procedure."""
