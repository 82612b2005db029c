"""What a server tells about itself: its pool, its process, its sessions, and shapes that it calculated."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from statepool.layout import ArenaLayout, BlockLayout


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Counts of a moment: held + evictable + free + releasing = capacity; the others overlap with these."""

    free_blocks: int
    """Blocks that nobody holds and that have no content worth keeping."""
    evictable_blocks: int
    """Committed blocks without a reference: found by `lookup_prefix` until they are needed."""
    held_blocks: int
    """Blocks with at least one reference."""
    releasing_blocks: int
    """Blocks without a reference whose last copy, read or write is still running, or that are in quarantine."""
    committed_blocks: int
    """Blocks in the prefix index, held or not."""
    busy_blocks: int
    """Blocks with a copy, read or write running."""
    sessions: int
    """Live sessions."""
    waiting_allocations: int
    """`allocate_blocks` calls that wait for blocks."""
    sequences: int
    """Live sequences of all sessions."""
    quarantined_blocks: int
    """Blocks whose owner is lost while an attached process may still write them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one request; a larger one is refused with `BatchTooLargeError`."""

    max_batch: int
    """Rows (blocks, hashes, requests) of one request."""
    max_copy_specs: int
    """Copy-spec entries (requests x tensors) of one `compute_copy_specs`."""
    max_message_bytes: int
    """Bytes of one message, both ways."""
    max_chunk_bytes: int
    """Bytes of data in one chunk of `read_blocks` and `write_blocks`."""
    max_sessions: int
    """Live sessions."""
    max_waiting_allocations: int
    """`allocate_blocks` calls that may wait at a time."""
    max_replays: int
    """Answers remembered per session for repeated request ids."""
    min_ttl_ms: int
    """Shortest time to live of a session, in milliseconds."""
    max_ttl_ms: int
    """Longest time to live of a session, in milliseconds."""
    max_sequences: int
    """Live sequences of all sessions."""
    max_step_hashes: int
    """Prefix hashes of all admissions of one engine step."""
    max_attachments: int
    """Processes that are attached, or about to be."""
    max_calls: int
    """Calls of everybody under way; more are refused with `OverloadedError`."""
    max_session_calls: int
    """Calls of one session under way, not counting those that only give something back."""
    max_transfers: int
    """Open transfers."""
    max_watchers: int
    """Open `watch_blocks` streams."""


@dataclass(frozen=True, slots=True, repr=False)
class Pool:
    """The one pool of a server."""

    incarnation: int
    """The server process that told."""
    model_type: str
    """Hugging Face ``model_type`` of the model, or "custom"."""
    layout: ArenaLayout
    """Where every state lies; the same on every rank."""
    capacity: int
    """Blocks that can be allocated: `block_count` without the null block."""
    block_tokens: int
    """Tokens per align-mode block; boundaries are multiples of it."""
    tp_size: int
    """Tensor-parallel size of the model."""
    tp_ranks: tuple[int, ...]
    """Ranks whose arenas the server holds, in the order used by ``rank_index``."""
    num_spec: int
    """Speculative tokens that the conv states have room for."""
    devices: tuple[str, ...]
    """Device of each rank's arena, for example "cpu" or "cuda:0"."""
    usage: PoolUsage
    """Blocks and sessions at the moment of the answer."""
    limits: Limits
    """What one request may ask for."""
    features: tuple[str, ...]
    """Optional abilities of the server, for example "copy_engine:host"."""
    family: str
    """Family of the model, for example "mamba2", or "custom"."""
    family_parameters: Mapping[str, int]
    """Its parameters, by the names of `statepool.shapes`, but for the tensor-parallel size and speculative tokens."""

    @property
    def block_count(self) -> int:
        """Blocks, the null block included."""
        return self.layout.block_count

    @property
    def block_bytes(self) -> int:
        """Bytes of one block image on one rank."""
        return self.layout.block.image_bytes

    def __repr__(self) -> str:
        return (
            f"<Pool {self.model_type} of {self.block_count:,} blocks of {self.block_bytes:,} bytes on "
            f"{', '.join(self.devices)}: {self.usage.free_blocks:,} free, {self.usage.evictable_blocks:,} evictable, "
            f"{self.usage.held_blocks:,} held>"
        )


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session as the server sees it."""

    session_id: int
    """The session."""
    epoch: int
    """Its epoch; a take-over raises it."""
    incarnation: int
    """The server process."""
    owner_key: str
    """The owner's name for it; empty for an anonymous session."""
    ttl: float
    """Time to live in seconds: the lease ends this long after its last renewal."""
    expire_time: datetime
    """When the lease ends, by the server's clock, in UTC."""
    block_count: int
    """Blocks to which the session holds a reference."""
    tenant: str
    """The tenant on whose account it runs; empty: none."""


@dataclass(frozen=True, slots=True, repr=False)
class ServerInfo:
    """A server process."""

    incarnation: int
    """Random number of the process, non-zero."""
    version: str
    """Version of statepool."""
    pid: int
    """Process id, in the server's own pid namespace."""
    start_time: datetime
    """When the process began to serve, in UTC."""
    uptime: float
    """Seconds that it has served, by its monotonic clock."""
    runtime_versions: Mapping[str, str]
    """Versions of what it runs on: "python", "grpcio", "protobuf", "torch"."""
    calls: Mapping[str, int]
    """Calls answered since the start, by full method name and status code: "statepool.v1.PoolService/GetPool:OK"."""
    continued_incarnations: tuple[int, ...]
    """Former server processes whose state this one has recovered: their sessions can be resumed."""
    background: Mapping[str, str]
    """Background tasks by name, each with what ended it; empty while it runs."""
    loop_lag: float
    """Longest delay of the server's event loop within the last ten seconds, in seconds."""
    is_draining: bool
    """Whether the server drains, or has drained."""

    def __repr__(self) -> str:
        return (
            f"<ServerInfo statepool {self.version}, pid {self.pid}, up {self.uptime:.1f} s, "
            f"{sum(self.calls.values()):,} calls, incarnation {self.incarnation:#x}>"
        )


@dataclass(frozen=True, slots=True)
class DrainProgress:
    """What a draining server still holds."""

    sequences: int
    """Sequences that have not finished."""
    sessions: int
    """Sessions that are still open."""

    @property
    def is_drained(self) -> bool:
        """Whether every sequence has finished."""
        return not self.sequences


@dataclass(frozen=True, slots=True, repr=False)
class AttachOffer:
    """Admits a process on the server's machine to the arena of one rank; `statepool.torch.attach` takes it up."""

    incarnation: int
    """The server process."""
    token: bytes
    """Good for one connection."""
    token_ttl: float
    """Seconds that it is good."""
    socket_path: str
    """Path of the Unix socket to connect to, in the server's own file system."""

    def __repr__(self) -> str:
        return f"<AttachOffer at {self.socket_path}, good for {self.token_ttl:g} s>"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A process that maps the arena of one rank."""

    attachment_id: int
    """Counts from 1, never reused by a server process."""
    rank_index: int
    """Index into `Pool.tp_ranks`."""
    read_only: bool
    """Whether it only reads."""
    pid: int
    """Its process id, in the server's own pid namespace; 0: not visible from there."""
    is_connected: bool
    """Whether its connection stands; without one, the server waits for proof that the process is dead."""
    unanswered_fences: int
    """Fences that it has not answered."""


@dataclass(frozen=True, slots=True)
class CalculatedShapes:
    """The states that a model, a family or a list of custom states needs."""

    family: str
    """Family of the model, for example "mamba2", or "custom"."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of one state layer on one rank, conv first, temporal last; empty for custom states."""
    state_layers: tuple[int, ...]
    """Indices of the layers that hold state; empty without a model."""
    layout: BlockLayout | None
    """The block image; None for a family."""
