"""What a configuration comes to: model, layout, size and limits, checked as a whole before any memory is taken."""

from dataclasses import dataclass, fields
from pathlib import Path

from statepool import Tls
from statepool.layout import ArenaLayout, Arrangement, BlockLayout, blocks_that_fit
from statepool.machine import default_state_dir
from statepool.models import ModelStates, find_model_config, model_layout, read_model_config
from statepool_server.access.certificates import Certificates
from statepool_server.access.rules import AccessFile, Role, roles_of
from statepool_server.addresses import Address, is_loopback, refuse_twice
from statepool_server.arena import parse_devices
from statepool_server.config import ServerConfig
from statepool_server.files import read_certificates, read_file
from statepool_server.journal.journal import RESERVE_BYTES
from statepool_server.limits import Limits
from statepool_server.memory import engine_for
from statepool_server.nixl_agent import nixl_package
from statepool_server.service.core import PoolDescription
from statepool_server.service.path_choice import NIXL_FEATURE
from statepool_server.service.peers import PeerTerms
from statepool_server.web import parse_http_address


@dataclass(frozen=True)
class Plan:
    """What a configuration comes to, checked before any memory is taken."""

    description: PoolDescription
    """The pool."""
    limits: Limits
    """Bounds of requests."""
    addresses: tuple[Address, ...]
    """Where to listen."""
    metrics_address: tuple[str, int] | None
    """Host and port of the HTTP listener; None: there is none."""
    metrics_in_clear: bool
    """Whether it is in plain HTTP, for whoever can connect."""
    peers: PeerTerms
    """Servers that states may be received from."""
    admin_addresses: tuple[Address, ...]
    """Where to listen for operators."""
    certificates: Certificates | None
    """For TCP; None: it is in plain text."""
    access: AccessFile
    """Tenants and tokens."""
    local_roles: frozenset[Role]
    """Of who comes by a Unix socket or in plain text, without a token."""
    state_dir: Path
    """Folder of host arenas and of the journal."""
    outlives_process: bool
    """Whether another server can go on where this one ends."""

    @property
    def attach_socket(self) -> Path:
        """Where processes attach: beside the first Unix socket, else in the folder of host arenas."""
        for address in self.addresses:
            if address.socket_path is not None:
                return address.socket_path.absolute().with_name(f"{address.socket_path.name}.attach")
        return self.state_dir.absolute() / "attach.sock"

    @classmethod
    def of(cls, config: ServerConfig) -> "Plan":
        """Checks a configuration as a whole.

        Raises:
            ValueError: Any setting that cannot be, with the numbers.
        """
        model = read_model_config(find_model_config(config.model_config))
        ranks = tuple(range(config.tp_size)) if config.tp_ranks is None else config.tp_ranks
        if not ranks or len(set(ranks)) != len(ranks) or not all(0 <= rank < config.tp_size for rank in ranks):
            raise ValueError(f"tp-ranks {list(ranks)}: must be different ranks of 0 to {config.tp_size - 1}")
        layout = _arena_layout(config, model)
        _check_align_mode(config, model)
        devices = parse_devices(config.device, len(ranks))
        description = PoolDescription(
            model_type=model.model_type,
            family=model.family,
            family_parameters=model.parameters,
            layout=layout,
            block_tokens=config.block_tokens,
            tp_size=config.tp_size,
            tp_ranks=ranks,
            num_spec=config.num_spec,
            devices=devices,
            features=(
                f"checksums:{config.checksums}",
                f"copy_engine:{engine_for(devices[0], config.copy_engine)}",
                *_nixl_features(config),
            ),
        )
        metrics_address = None if config.metrics_listen is None else parse_http_address(config.metrics_listen)
        plan = cls(
            description,
            limits_of(config),
            tuple(Address.parse(text) for text in config.listen),
            metrics_address,
            metrics_address is not None and (config.insecure_metrics or is_loopback(metrics_address[0])),
            _peer_terms(config),
            tuple(Address.parse(text) for text in config.admin_listen),
            _certificates(config),
            AccessFile(config.access),
            _local_roles(config.local_roles),
            config.state_dir or default_state_dir(),
            config.recovery and all(device == "cpu" for device in devices),
        )
        places = [("--listen", each.place) for each in plan.addresses]
        places += [("--admin-listen", each.place) for each in plan.admin_addresses]
        refuse_twice(places if metrics_address is None else [*places, ("--metrics-listen", metrics_address)])
        plan._refuse_plaintext(config.insecure_loopback)
        plan.peers.check()
        return plan

    def _refuse_plaintext(self, insecure_loopback: bool) -> None:
        if self.certificates is not None and insecure_loopback:
            raise ValueError("insecure-loopback: with tls-cert, TCP is never in plain text")
        if self.certificates is not None:
            return
        for address in (*self.addresses, *self.admin_addresses):
            address.refuse_plaintext(insecure_loopback)
        if self.metrics_address is not None and not self.metrics_in_clear:
            raise ValueError(
                f"metrics-listen {self.metrics_address[0]}: beyond loopback it needs tls-cert and tls-key, or "
                "insecure-metrics: plain HTTP for whoever can connect"
            )


def _nixl_features(config: ServerConfig) -> list[str]:
    """Names NIXL, if it is wished.

    Raises:
        ValueError: It is, and cannot be had.
    """
    if config.nixl_devices is None:
        if config.data_path == "nixl":
            raise ValueError("data-path nixl: nixl-devices must say over which network devices")
        return []
    if nixl_package() is None:
        raise ValueError("nixl-devices: install statepool[nixl-cu12] or statepool[nixl-cu13]")
    if config.device != "cpu" or config.arrangement is not Arrangement.BLOCK_MAJOR:
        raise ValueError("nixl-devices: only host memory whose arrangement is block_major is read over NIXL")
    return [NIXL_FEATURE]


def _certificates(config: ServerConfig) -> Certificates | None:
    """Reads the files of certificates.

    Raises:
        ValueError: One of them is missing or bad, or nothing would tell who calls.
    """
    if config.tls_cert is None and config.tls_key is None and config.tls_client_ca is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise ValueError("tls-cert and tls-key must be given together, and tls-client-ca with them")
    if config.tls_client_ca is None and config.access is None:
        raise ValueError("tls-cert: callers are known by certificates (tls-client-ca) or by tokens (access): give one")
    return Certificates(config.tls_cert, config.tls_key, config.tls_client_ca)


def _peer_terms(config: ServerConfig) -> PeerTerms:
    """Tells how other servers are reached: over TLS as soon as this server has anything to do with it."""
    allowed, tls = tuple(Address.parse(text) for text in config.allow_peer), None
    if config.peer_ca is not None:
        read_certificates("--peer-ca", config.peer_ca)
    if config.tls_cert is not None or config.peer_ca is not None:
        tls = Tls(ca=config.peer_ca or config.tls_client_ca, cert=config.tls_cert, key=config.tls_key)
    if tls is not None and config.peer_token_file is not None:
        read_file("--peer-token-file", config.peer_token_file)
    return PeerTerms(allowed, tls, config.peer_token_file)


def _local_roles(text: str) -> frozenset[Role]:
    try:
        return roles_of(text)
    except ValueError as error:
        raise ValueError(f"local-roles: {error}") from error


def _arena_layout(config: ServerConfig, model: ModelStates) -> ArenaLayout:
    """Sizes the arena of a rank.

    Raises:
        ValueError: The model has no such states, neither or both of blocks and memory are given, or not even two blocks
            fit.
    """
    try:
        block = model_layout(
            model,
            tp_size=config.tp_size,
            num_spec=config.num_spec,
            conv_layout=config.conv_layout,
            conv_dtype=config.conv_dtype,
            temporal_dtype=config.temporal_dtype,
        )
    except ValueError as error:
        raise ValueError(f"model-config {config.model_config}: {error}") from error
    return ArenaLayout(block, _block_count(config, block), config.arrangement)


def _check_align_mode(config: ServerConfig, model: ModelStates) -> None:
    """Checks that speculative states have room: in the columns of block tables, and in the conv states.

    Raises:
        ValueError: As many speculative tokens as a block has tokens, or conv states without a row for each.
    """
    if config.num_spec >= config.block_tokens:
        raise ValueError(f"num-spec: {config.num_spec} must be below block-tokens, {config.block_tokens}")
    if not model.has_spec_rows(config.num_spec):
        raise ValueError(f"num-spec: conv states of {model.model_type} have no {config.num_spec} extra rows")


def _block_count(config: ServerConfig, block: BlockLayout) -> int:
    if (config.blocks is None) == (config.memory is None):
        raise ValueError("exactly one of blocks and memory must be given")
    if config.memory is None:
        return config.blocks or 0
    count = min(blocks_that_fit(block, config.memory, config.arrangement), 2**31 - 1)
    if count < 2:
        raise ValueError(
            f"memory: {config.memory} bytes hold {count} blocks of {block.image_bytes} bytes, and a pool needs 2 "
            "(block 0 is the null block)"
        )
    return count


def limits_of(config: ServerConfig) -> Limits:
    """Takes the bounds of requests out of a configuration.

    Raises:
        ValueError: Chunks that do not fit into messages, or a longest ttl below the shortest.
    """
    if config.max_chunk_bytes + 4096 > config.max_message_bytes or config.max_chunk_bytes < 1:
        raise ValueError("max-chunk-bytes: must be positive and leave 4 KiB of max-message-bytes for the rest")
    if config.journal_bytes < 2 * config.max_message_bytes + 4 * RESERVE_BYTES:
        raise ValueError(f"journal-bytes: must be at least twice max-message-bytes and {4 * RESERVE_BYTES} more")
    if not 0 < config.min_ttl <= config.max_ttl:
        raise ValueError("min-ttl: must be positive and not above max-ttl")
    counts = {field.name: getattr(config, field.name) for field in fields(Limits) if hasattr(config, field.name)}
    return Limits(**counts, min_ttl_ms=round(config.min_ttl * 1000), max_ttl_ms=round(config.max_ttl * 1000))
