"""What is known of states that move between servers."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from statepool.refs import BlockRefs


class DataPath(IntEnum):
    """How bytes have come from one server to another; the numbers are those of the wire."""

    GRPC = 1
    """As byte streams of gRPC, pulled by the receiving server."""
    NIXL = 2
    """Over NIXL, read out of the source's memory by the receiving server."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """States that a server lends under a lease; whoever has this value may read them and end the transfer.

    A plain value, so that it can be sent to the process that receives the states.
    """

    transfer_id: int
    """The transfer; counts from 1, never reused by a pool."""
    token: bytes = field(repr=False)
    """Proves that its creator has handed it on; a secret."""
    block_count: int
    """States lent; each has one image on every rank."""
    num_tokens: int
    """Tokens that the state has seen, for a sequence; 0 for blocks."""


@dataclass(frozen=True, slots=True)
class TransferInfo:
    """An open transfer, as a server shows it to anybody."""

    transfer_id: int
    """The transfer."""
    session_id: int
    """Session that has created it; it may have ended since."""
    peer: str
    """Who it is for, as its creator has said."""
    block_count: int
    """States lent."""
    num_tokens: int
    """Tokens that the state has seen, for a sequence; 0 for blocks."""
    expire_time: datetime
    """When it ends by itself, by the server's clock, in UTC."""


@dataclass(frozen=True, slots=True)
class NixlRegion:
    """Memory of one rank that is registered with NIXL."""

    tp_rank: int
    """Tensor-parallel rank."""
    address: int
    """Where block 0 begins, in the owner's address space."""
    block_bytes: int
    """Bytes of a block; the next one follows."""
    block_count: int
    """Blocks."""


@dataclass(frozen=True, slots=True)
class NixlEndpoint:
    """How a server's memory is reached over NIXL."""

    name: str
    """Name of its agent, which no other process ever has."""
    metadata: bytes = field(repr=False)
    """What other agents connect with."""
    metadata_sha256: bytes = field(repr=False)
    """SHA-256 of it, as the server computed it."""
    regions: tuple[NixlRegion, ...]
    """The memory of every rank."""


@dataclass(frozen=True, slots=True)
class Received:
    """States that a server has received."""

    blocks: BlockRefs
    """Blocks that hold them, in the order of the transfer; the session's, uncommitted, one reference each."""
    nbytes: int
    """Bytes that have come, of all ranks."""
    data_path: DataPath
    """How they have come."""
