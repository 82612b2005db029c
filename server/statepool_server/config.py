"""What an operator can set: one frozen dataclass, filled from flags, the environment and a TOML file."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from statepool.cli.options import Addresses, ByteSize, Seconds, SomeBytes, SomeTime, split_list
from statepool.layout import Arrangement, ConvLayout

DEFAULT_LISTEN = "unix:///run/statepool/statepool.sock"
"""Where a server listens unless told otherwise; the client's default target."""

VARIABLES_PREFIX = "STATEPOOL_"
"""How the environment variables of settings begin."""

_OTHER_VARIABLES = ("CONFIG", "CLIENT_CONFIG", "FAILPOINTS", "TARGET", "CA", "CERT", "KEY", "SERVER_NAME", "TOKEN_FILE")
"""What else is read from variables: by the server, and by commands beside it to find it."""

_OF_KUBERNETES = re.compile(r"\w+_SERVICE_(HOST|PORT\w*)|\w+_PORT(_\d+_\w+)?")
"""Variables that it sets for services, one of which may be called statepool."""


def _ranks(_type: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    texts = [text for token in tokens for text in split_list(token.value)]
    if not all(text.isascii() and text.isdecimal() for text in texts):
        raise ValueError(f"{' '.join(texts)!r} is no list of ranks: it looks like 0,1")
    return tuple(map(int, texts))


Count: TypeAlias = Annotated[int, Parameter(validator=Number(gte=1, lte=2**31 - 1))]
"""An option that counts something and cannot be zero."""

Ranks: TypeAlias = Annotated[tuple[int, ...], Parameter(converter=_ranks, n_tokens=1, negative=())]
"""An option that lists tensor-parallel ranks: ``0,1``."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of one server process.

    Attributes:
        model_config: The model: a bundled one by its name, such as mamba2, else a config.json or its folder.
        memory: Bytes of each rank's arena, such as 4GiB; the pool gets as many blocks as fit. Exclusive with --blocks.
        blocks: Blocks of the pool, the null block included. Exclusive with --memory.
        block_tokens: Tokens per align-mode block; committed boundaries are multiples of it.
        tp_size: Tensor-parallel size of the model.
        tp_ranks: Ranks whose arenas this server holds; all of them by default.
        num_spec: Speculative tokens that the conv states have room for.
        conv_layout: Order of conv dimensions; by default VLLM_SSM_CONV_STATE_LAYOUT, else SD.
        conv_dtype: Element type of conv states (mamba_cache_dtype); auto is the model's.
        temporal_dtype: Element type of temporal states (mamba_ssm_cache_dtype); auto is as conv.
        arrangement: block_major makes a block one run of bytes, layer_major makes a tensor one run over all blocks.
        device: cpu, or cuda:N for all ranks, or cuda:N,M,… one for each rank.
        state_dir: Private folder for host arenas and the journal, on tmpfs; by default /dev/shm/statepool-UID.
        recovery: Keep a journal beside host arenas, so that the next server on the same --state-dir goes on where this
            one ends, whatever ends it. Device memory ends with its server, and is not covered.
        discard_state: Begin anew where --state-dir holds the state of another pool, which is then lost; without it the
            server does not start there.
        recovery_grace: How long sessions live at least after such a restart, for their owners to come back.
        journal_bytes: Size of a file of the journal; there are two or three, and their pages are taken as needed.
        copy_engine: host copies on threads, or on a device by triton where that is installed; triton, or reference, the
            plain torch one that the tests compare with.
        copy_threads: Threads of the copy engine, and copies that run at a time.
        listen: Addresses: unix:PATH, or HOST:PORT with TLS.
        admin_listen: Addresses for operators alone (roles admin and observer); with one, nothing that needs the role
            admin can be had at the others. Its Unix sockets are the server's user's alone.
        tls_cert: PEM file of the certificate for TCP; it, the key and the authority are read anew when they change.
        tls_key: PEM file of its key.
        tls_client_ca: PEM file of the authority of callers' certificates, which are then required.
        insecure_loopback: Serve TCP in plain text, on loopback hosts only: for tests, and for proxies that do TLS.
        socket_access: Who may open the Unix sockets of --listen: user, the server's own; group, its group as well.
        local_roles: Roles, such as worker,scheduler, of who comes by a Unix socket or plain text without a token; none:
            a token is needed.
        access: TOML file with tenants and hashes of tokens; it is read anew when it changes.
        metrics_listen: HOST:PORT of an HTTP listener for Prometheus (/metrics) and browsers (the status page, /); by
            default there is none. It shows numbers, not states, hashes or keys: on a loopback host to whoever can
            connect, elsewhere over HTTPS (--tls-cert) to the roles observer and admin.
        insecure_metrics: Serve them in plain HTTP to whoever can connect, on any host.
        tracing: otlp makes calls, engine steps and copies spans of OpenTelemetry, exported as the environment variables
            of its SDK say (OTEL_EXPORTER_OTLP_ENDPOINT, …); needs statepool[otel].
        allow_peer: Servers that states may be received from: unix:PATH or HOST:PORT; may be repeated. By default any on
            a Unix socket or a loopback host of this machine, but none for a tenant. With --tls-cert or --peer-ca, TCP
            is over TLS, and this server shows its certificate; without, only loopback hosts are reached.
        peer_ca: PEM file of the authority of their certificates; by default --tls-client-ca, else those that gRPC has.
        peer_token_file: File with a bearer token to show them, where they know callers by tokens.
        data_path: How received states come: nixl where both servers have it, their layouts are the same and the memory
            is the host's, else as gRPC streams (auto); or one of the two and no other.
        nixl_devices: Network devices over which other servers read this one's memory and it reads theirs, as UCX names
            them: lo, eth0, mlx5_0:1. Needs statepool[nixl-cu12] or statepool[nixl-cu13]; by default there is no NIXL.
            Whoever reaches them can read and write all memory of this process: a private network, see SECURITY.md.
        checksums: off; scrub takes a checksum of every block that is committed and compares it again and again in the
            background; lookup also compares it before a block that was found is handed out.
        scrub_rate: Bytes a second, of all ranks, that are compared in the background.
        max_batch: Rows of one request.
        max_copy_specs: Copy-spec entries (requests x tensors) of one ComputeCopySpecs.
        max_message_bytes: Bytes of one message, both ways.
        max_chunk_bytes: Bytes of data in one chunk of ReadBlocks and WriteBlocks.
        max_sessions: Live sessions.
        max_sequences: Live sequences of all sessions.
        max_step_hashes: Prefix hashes of all admissions of one engine step.
        max_attachments: Processes that are attached, or about to be.
        max_connections: Connections of each kind (local, TLS, and each of them for operators); more are closed as they
            come.
        max_calls: Calls of everybody under way, KeepAlive and Schedule streams apart; those that give something back
            find room for as many again.
        max_session_calls: Calls of one session under way, without those that give something back.
        max_transfers: Open transfers: states that are lent to other servers.
        max_watchers: Open WatchBlocks streams.
        watch_bytes: Bytes of the latest changes that are kept for watchers that lag or come back.
        pressure: Share of the blocks below which free and evictable ones are told to be scarce.
        max_waiting_allocations: AllocateBlocks calls that may wait for blocks at a time.
        max_queued_copies: Copies, zeroings, reads and writes that may be queued or run at a time.
        max_replays: Answers remembered per session for repeated request ids.
        min_ttl: Shortest time to live of a session.
        max_ttl: Longest time to live of a session.
        stall_timeout: How long the peer of a stream that has to move may stand still before the stream is ended.
        copy_stall_timeout: How long copies, zeroings, reads or writes of one call may run before the pool's health is
            NOT_SERVING and callers are refused until they end.
        attach_timeout: How long a token for attaching is good, and how long a connection may take to present it.
        drain_timeout: How long a stopping server waits for sequences and calls to finish.
        log_level: Least level of what is logged; debug has one line per call.
        log_format: auto is console on a terminal, else json.
    """

    model_config: str
    memory: ByteSize | None = None
    blocks: Count | None = None
    block_tokens: Count = 256
    tp_size: Count = 1
    tp_ranks: Ranks | None = None
    num_spec: Annotated[int, Parameter(validator=Number(gte=0, lte=1024))] = 0
    conv_layout: ConvLayout | None = None
    conv_dtype: str = "auto"
    temporal_dtype: str = "auto"
    arrangement: Arrangement = Arrangement.BLOCK_MAJOR
    device: str = "cpu"
    state_dir: Path | None = None
    recovery: bool = True
    discard_state: Annotated[bool, Parameter(negative=())] = False
    recovery_grace: Seconds = 30.0
    journal_bytes: ByteSize = 64 * 2**20
    copy_engine: Literal["host", "reference", "triton"] = "host"
    copy_threads: Count = 2
    listen: Addresses = field(default_factory=lambda: [DEFAULT_LISTEN])
    metrics_listen: str | None = None
    insecure_metrics: Annotated[bool, Parameter(negative=())] = False
    tracing: Literal["off", "otlp"] = "off"
    allow_peer: Addresses = field(default_factory=list)
    peer_ca: Path | None = None
    peer_token_file: Path | None = None
    admin_listen: Addresses = field(default_factory=list)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    insecure_loopback: Annotated[bool, Parameter(negative=())] = False
    socket_access: Literal["user", "group"] = "user"
    local_roles: str = "worker,scheduler,observer,admin"
    access: Path | None = None
    data_path: Literal["auto", "grpc", "nixl"] = "auto"
    nixl_devices: str | None = None
    checksums: Literal["off", "scrub", "lookup"] = "off"
    scrub_rate: SomeBytes = 64 * 2**20
    max_batch: Count = 4096
    max_copy_specs: Count = 65536
    max_message_bytes: ByteSize = 16 * 2**20
    max_chunk_bytes: ByteSize = 2**20
    max_sessions: Count = 1024
    max_sequences: Count = 65536
    max_step_hashes: Count = 65536
    max_attachments: Count = 64
    max_connections: Count = 1024
    max_calls: Count = 1024
    max_session_calls: Count = 256
    max_transfers: Count = 1024
    max_watchers: Count = 256
    watch_bytes: ByteSize = 8 * 2**20
    pressure: Annotated[float, Parameter(validator=Number(gte=0, lte=1))] = 0.05
    max_waiting_allocations: Count = 256
    max_queued_copies: Count = 1024
    max_replays: Count = 256
    min_ttl: Seconds = 0.1
    max_ttl: Seconds = 3600.0
    stall_timeout: SomeTime = 30.0
    copy_stall_timeout: SomeTime = 30.0
    attach_timeout: SomeTime = 10.0
    drain_timeout: Seconds = 10.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"


def unknown_variables(names: Iterable[str]) -> dict[str, str]:
    """Finds variables that look like settings and are none, of the server or of a client beside it.

    Args:
        names: The environment variables that there are.

    Returns:
        The variables, each with that of a setting which it resembles; empty: it resembles none.
    """
    settings = {f"{VARIABLES_PREFIX}{each.name.upper()}" for each in fields(ServerConfig)}
    known = settings | {f"{VARIABLES_PREFIX}{name}" for name in _OTHER_VARIABLES}
    unknown = (name for name in sorted(names) if name.startswith(VARIABLES_PREFIX) and name not in known)
    return {
        name: next(iter(get_close_matches(name, settings, 1)), "")
        for name in unknown
        if not _OF_KUBERNETES.fullmatch(name)
    }
