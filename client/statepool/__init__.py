"""Client of statepool, the gRPC service that owns the state-block pool of hybrid and state-space models.

```python
with statepool.Client("unix:///run/statepool/statepool.sock") as client:
    with client.create_session(ttl=10.0) as session:
        blocks = session.allocate_blocks(4)
```

`AsyncClient` has the same methods for asyncio. Errors are the tree of `statepool.errors`, all of whose classes are here
too. Names are loaded when they are first used, so that `statepool.shapes`, `statepool.models` and `statepool.layout`
need no gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from statepool.aio.client import AsyncClient
    from statepool.aio.group import AsyncGroup
    from statepool.aio.scheduler import AsyncScheduler
    from statepool.aio.session import AsyncSession
    from statepool.chunks import align_chunk
    from statepool.descriptions import (
        Attachment,
        AttachOffer,
        CalculatedShapes,
        DrainProgress,
        Limits,
        Pool,
        PoolUsage,
        ServerInfo,
        SessionInfo,
    )
    from statepool.errors import (
        AbortedError,
        AlreadyExistsError,
        AttachmentNotFoundError,
        BadFieldError,
        BatchTooLargeError,
        BlockBusyError,
        BlockIndexOutOfRangeError,
        BlockInSequenceError,
        BlockNotOwnedError,
        BlockNotWritableError,
        BoundaryNotWrittenError,
        CancelledError,
        ChecksumMismatchError,
        ColumnLengthMismatchError,
        CopiesStalledError,
        DataLossError,
        DeadlineExceededError,
        DivergedError,
        DrainingError,
        DsSpecNotContiguousError,
        EventCursorCompactedError,
        FailedPreconditionError,
        FeatureUnavailableError,
        GenerationStaleError,
        GroupError,
        IncarnationMismatchError,
        InvalidArgumentError,
        LayoutMismatchError,
        NotFoundError,
        OutOfRangeError,
        OverloadedError,
        OwnerKeyInUseError,
        PeerLostError,
        PeerUntrustedError,
        PermissionDeniedError,
        PoolExhaustedError,
        QuotaExceededError,
        RequestIdReusedError,
        ResourceExhaustedError,
        RoleForbiddenError,
        SequenceExistsError,
        SequenceNotFoundError,
        SessionExpiredError,
        SessionFencedError,
        SessionNotFoundError,
        StateLostError,
        StatepoolError,
        StepOutOfOrderError,
        StreamReplacedError,
        StreamStalledError,
        TransferNotFoundError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from statepool.hashing import PrefixHasher, prefix_hashes
    from statepool.metrics import Metrics, MetricSample
    from statepool.outcomes import AdmissionResults, SequencePage, StepCopies, StepOutcome, TableChanges
    from statepool.refs import BlockRefs
    from statepool.results import BlockPage, BlockState, Chunk, Commit, CopySpecs, Eviction, Hit, IntegrityReport
    from statepool.retries import ClientStats
    from statepool.security import Tls
    from statepool.sequences import (
        ALL_RUNNING,
        Admission,
        Commits,
        Execution,
        ImportedState,
        Notice,
        NoticeKind,
        Schedules,
    )
    from statepool.steps import StepBuilder
    from statepool.sync.client import Client
    from statepool.sync.group import Group
    from statepool.sync.scheduler import Scheduler
    from statepool.sync.session import Session
    from statepool.transfers import DataPath, Received, Transfer, TransferInfo
    from statepool.watching import BlockChanges, ChangeKind, WatchCursor

    __version__: str

__all__ = [
    "ALL_RUNNING",
    "AbortedError",
    "Admission",
    "AdmissionResults",
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncGroup",
    "AsyncScheduler",
    "AsyncSession",
    "AttachOffer",
    "Attachment",
    "AttachmentNotFoundError",
    "BadFieldError",
    "BatchTooLargeError",
    "BlockBusyError",
    "BlockChanges",
    "BlockInSequenceError",
    "BlockIndexOutOfRangeError",
    "BlockNotOwnedError",
    "BlockNotWritableError",
    "BlockPage",
    "BlockRefs",
    "BlockState",
    "BoundaryNotWrittenError",
    "CalculatedShapes",
    "CancelledError",
    "ChangeKind",
    "ChecksumMismatchError",
    "Chunk",
    "Client",
    "ClientStats",
    "ColumnLengthMismatchError",
    "Commit",
    "Commits",
    "CopiesStalledError",
    "CopySpecs",
    "DataLossError",
    "DataPath",
    "DeadlineExceededError",
    "DivergedError",
    "DrainProgress",
    "DrainingError",
    "DsSpecNotContiguousError",
    "EventCursorCompactedError",
    "Eviction",
    "Execution",
    "FailedPreconditionError",
    "FeatureUnavailableError",
    "GenerationStaleError",
    "Group",
    "GroupError",
    "Hit",
    "ImportedState",
    "IncarnationMismatchError",
    "IntegrityReport",
    "InvalidArgumentError",
    "LayoutMismatchError",
    "Limits",
    "MetricSample",
    "Metrics",
    "NotFoundError",
    "Notice",
    "NoticeKind",
    "OutOfRangeError",
    "OverloadedError",
    "OwnerKeyInUseError",
    "PeerLostError",
    "PeerUntrustedError",
    "PermissionDeniedError",
    "Pool",
    "PoolExhaustedError",
    "PoolUsage",
    "PrefixHasher",
    "QuotaExceededError",
    "Received",
    "RequestIdReusedError",
    "ResourceExhaustedError",
    "RoleForbiddenError",
    "Scheduler",
    "Schedules",
    "SequenceExistsError",
    "SequenceNotFoundError",
    "SequencePage",
    "ServerInfo",
    "Session",
    "SessionExpiredError",
    "SessionFencedError",
    "SessionInfo",
    "SessionNotFoundError",
    "StateLostError",
    "StatepoolError",
    "StepBuilder",
    "StepCopies",
    "StepOutOfOrderError",
    "StepOutcome",
    "StreamReplacedError",
    "StreamStalledError",
    "TableChanges",
    "Tls",
    "Transfer",
    "TransferInfo",
    "TransferNotFoundError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "WatchCursor",
    "align_chunk",
    "prefix_hashes",
]

_HOMES = {
    "statepool.aio.client": ("AsyncClient",),
    "statepool.aio.group": ("AsyncGroup",),
    "statepool.aio.scheduler": ("AsyncScheduler",),
    "statepool.aio.session": ("AsyncSession",),
    "statepool.chunks": ("align_chunk",),
    "statepool.descriptions": (
        *("AttachOffer", "Attachment", "CalculatedShapes", "DrainProgress", "Limits"),
        *("Pool", "PoolUsage", "ServerInfo", "SessionInfo"),
    ),
    "statepool.hashing": ("PrefixHasher", "prefix_hashes"),
    "statepool.metrics": ("MetricSample", "Metrics"),
    "statepool.outcomes": ("AdmissionResults", "SequencePage", "StepCopies", "StepOutcome", "TableChanges"),
    "statepool.refs": ("BlockRefs",),
    "statepool.results": (
        "BlockPage",
        "BlockState",
        "Chunk",
        "Commit",
        "CopySpecs",
        "Eviction",
        "Hit",
        "IntegrityReport",
    ),
    "statepool.retries": ("ClientStats",),
    "statepool.sequences": (
        *("ALL_RUNNING", "Admission", "Commits", "Execution"),
        *("ImportedState", "Notice", "NoticeKind", "Schedules"),
    ),
    "statepool.security": ("Tls",),
    "statepool.steps": ("StepBuilder",),
    "statepool.sync.client": ("Client",),
    "statepool.sync.group": ("Group",),
    "statepool.sync.scheduler": ("Scheduler",),
    "statepool.sync.session": ("Session",),
    "statepool.transfers": ("DataPath", "Received", "Transfer", "TransferInfo"),
    "statepool.watching": ("BlockChanges", "ChangeKind", "WatchCursor"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_ERRORS = "statepool.errors"


if not TYPE_CHECKING:  # a type checker would take any name for a good one

    def __getattr__(name: str) -> object:
        """Loads a public name when it is first used (PEP 562)."""
        if name == "__version__":
            from importlib.metadata import version  # half as slow to import as gRPC

            return version("statepool")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(_HOME_OF.get(name, _ERRORS)), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
