"""Every metric of the server; names, help texts and sources are nowhere else."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import TypeAlias

from statepool.transfers import DataPath
from statepool_server.histogram import Histogram
from statepool_server.metrics.metric import Counter, Distribution, Gauge, Labels, Sources
from statepool_server.tally import Tally

Metrics: TypeAlias = tuple[Gauge | Counter | Distribution, ...]
"""Some of them."""

_VERSION = version("statepool")  # read from a file


def _one(value: float) -> dict[Labels, float]:
    return {(): value}


def _by(label_values: Mapping[str, float]) -> dict[Labels, float]:
    return {(label,): value for label, value in label_values.items()}


def _tally(sources: Sources) -> Tally:
    return sources.core.pool.tally


# Blocks


def _blocks(sources: Sources) -> dict[Labels, float]:
    usage = sources.core.pool.usage()
    return _by({"free": usage.free, "evictable": usage.evictable, "held": usage.held, "releasing": usage.releasing})


def _searches(sources: Sources) -> dict[Labels, float]:
    tally = _tally(sources)
    return {
        ("lookup", "hit"): tally.lookup_hits,
        ("lookup", "miss"): tally.lookups - tally.lookup_hits,
        ("admission", "hit"): tally.admission_hits,
        ("admission", "miss"): tally.admissions - tally.admission_hits,
    }


_BLOCKS: Metrics = (
    Gauge(
        "statepool_blocks",
        "blocks",
        "Blocks of the pool by state, the null block left out; the sum is the capacity.",
        _blocks,
        ("state",),
    ),
    Gauge(
        "statepool_findable_blocks",
        "blocks",
        "Committed blocks that the prefix index names.",
        lambda s: _one(s.core.pool.usage().committed),
    ),
    Gauge(
        "statepool_busy_blocks",
        "blocks",
        "Blocks with a copy, read or write running.",
        lambda s: _one(s.core.pool.usage().busy),
    ),
    Gauge(
        "statepool_quarantined_blocks",
        "blocks",
        "Blocks in quarantine, condemned ones included.",
        lambda s: _one(s.core.pool.usage().quarantined),
    ),
    Gauge(
        "statepool_condemned_blocks",
        "blocks",
        "Blocks whose bytes are not those that were committed.",
        lambda s: _one(s.core.pool.blocks.condemned_count),
    ),
    Gauge(
        "statepool_block_size_bytes",
        "bytes",
        "Bytes of a block on one rank.",
        lambda s: _one(s.core.description.layout.block.image_bytes),
    ),
    Gauge(
        "statepool_arena_bytes",
        "bytes",
        "Bytes of the arena of each local rank.",
        lambda s: {
            (str(rank), device): s.core.description.layout.nbytes
            for rank, device in zip(s.core.description.tp_ranks, s.core.description.devices, strict=True)
        },
        ("rank", "device"),
    ),
    Counter(
        "statepool_allocated_blocks",
        "blocks",
        "Blocks that were handed out, by AllocateBlocks and to sequences.",
        lambda s: _one(_tally(s).allocated_blocks),
    ),
    Counter(
        "statepool_released_blocks",
        "blocks",
        "Blocks that became free or evictable.",
        lambda s: _one(s.core.pool.blocks.released_count),
    ),
    Counter(
        "statepool_evicted_blocks",
        "blocks",
        "Committed blocks that can no longer be found, to make room for others or on request.",
        lambda s: _by({"room": _tally(s).evicted_blocks, "request": _tally(s).unlisted_blocks}),
        ("reason",),
    ),
    Counter(
        "statepool_commits",
        "commits",
        "Committed states: new ones became findable, the hash of a duplicate was held by another block.",
        lambda s: _by({"new": _tally(s).commits, "duplicate": _tally(s).duplicate_commits}),
        ("outcome",),
    ),
    Counter(
        "statepool_prefix_searches",
        "searches",
        "Searches of the prefix index, by LookupPrefix and by admissions of sequences.",
        _searches,
        ("by", "outcome"),
    ),
    Counter(
        "statepool_prompt_tokens",
        "tokens",
        "Prompt tokens of admitted sequences: the denominator of the hit rate.",
        lambda s: _one(_tally(s).prompt_tokens),
    ),
    Counter(
        "statepool_prompt_hit_tokens",
        "tokens",
        "Prompt tokens of admitted sequences whose state was found: the numerator of the hit rate.",
        lambda s: _one(_tally(s).hit_tokens),
    ),
    Distribution(
        "statepool_allocation_wait_seconds",
        "seconds",
        "How long AllocateBlocks calls waited that had to, with or without success.",
        lambda s: {(): s.core.waiting.seconds},
    ),
    Gauge(
        "statepool_waiting_allocations",
        "allocations",
        "AllocateBlocks calls that wait for blocks.",
        lambda s: _one(len(s.core.waiting)),
    ),
)

# Sessions, sequences and attached processes


def _attachments(sources: Sources) -> dict[Labels, float]:
    live = sources.core.pool.attachments.live.values()
    readers = sum(attachment.read_only for attachment in live)
    return _by({"read_only": readers, "read_write": len(live) - readers})


_SESSIONS: Metrics = (
    Gauge("statepool_sessions", "sessions", "Live sessions.", lambda s: _one(s.core.pool.usage().sessions)),
    Counter(
        "statepool_opened_sessions",
        "sessions",
        "Sessions that were opened, taken over ones left out.",
        lambda s: _one(_tally(s).opened_sessions),
    ),
    Counter(
        "statepool_taken_over_sessions",
        "sessions",
        "Sessions that were taken over by another owner.",
        lambda s: _one(_tally(s).taken_over_sessions),
    ),
    Counter(
        "statepool_ended_sessions",
        "sessions",
        "Sessions that ended: deleted by their owner, or expired.",
        lambda s: _by({"deleted": _tally(s).deleted_sessions, "expired": _tally(s).expired_sessions}),
        ("reason",),
    ),
    Gauge(
        "statepool_sequences",
        "sequences",
        "Live sequences of all sessions.",
        lambda s: _one(s.core.pool.usage().sequences),
    ),
    Counter(
        "statepool_admitted_sequences",
        "sequences",
        "Sequences that began, by where their state comes from: searched for, or imported.",
        lambda s: _by({"searched": _tally(s).admissions, "imported": _tally(s).imports}),
        ("state",),
    ),
    Counter(
        "statepool_finished_sequences",
        "sequences",
        "Sequences that their owner has finished; those that end with their session are left out.",
        lambda s: _one(_tally(s).finishes),
    ),
    Gauge("statepool_attachments", "attachments", "Processes that map the pool's memory.", _attachments, ("access",)),
    Counter(
        "statepool_raised_fences",
        "fences",
        "Fences that were put up around blocks of lost sessions.",
        lambda s: _one(s.core.pool.attachments.last_fence),
    ),
    Gauge(
        "statepool_standing_fences",
        "fences",
        "Fences that attached processes have not answered.",
        lambda s: _one(len(s.core.pool.attachments.fences)),
    ),
)

# Calls, steps and memory work


def _rpcs(sources: Sources) -> dict[Labels, float]:
    return {(*name.split("/"), code): count for (name, code), count in sources.calls.counts.items()}


def _rpc_seconds(sources: Sources) -> dict[Labels, Histogram]:
    return {tuple(name.split("/")): seconds for name, seconds in sources.calls.seconds.items() if seconds.total}


_CALLS: Metrics = (
    Counter(
        "statepool_rpcs",
        "rpcs",
        "Calls that were answered; streams count when they end.",
        _rpcs,
        ("service", "method", "code"),
    ),
    Distribution(
        "statepool_rpc_seconds",
        "seconds",
        "What calls took in the server; streams that last as long as their client are left out.",
        _rpc_seconds,
        ("service", "method"),
    ),
    Counter(
        "statepool_refusals",
        "refusals",
        "Errors that clients were answered, by reason; those of single engine steps included.",
        lambda s: _by(s.core.refusals),
        ("reason",),
    ),
    Gauge(
        "statepool_current_rpcs",
        "rpcs",
        "Calls under way, and open streams that last as long as their client.",
        lambda s: _by({"call": s.core.admission.calls.under_way, "stream": s.core.admission.streams.under_way}),
        ("kind",),
    ),
    Counter(
        "statepool_steps",
        "steps",
        "Engine steps that were applied: steady ones, in which all decode one token, and planned ones.",
        lambda s: _by({"steady": _tally(s).steady_steps, "planned": _tally(s).planned_steps}),
        ("kind",),
    ),
    Distribution(
        "statepool_step_seconds",
        "seconds",
        "What answered engine steps took in the server, the server's copies included.",
        lambda s: {(): s.steps.seconds},
    ),
)


def _engine(sources: Sources) -> str:
    features = dict(feature.partition(":")[::2] for feature in sources.core.description.features)
    return features["copy_engine"]


_MEMORY: Metrics = (
    Distribution(
        "statepool_copy_seconds",
        "seconds",
        "What work on the memory of blocks took on its thread, by kind and copy engine.",
        lambda s: {(kind, _engine(s)): seconds for kind, seconds in s.core.copies.seconds.items()},
        ("kind", "engine"),
    ),
    Distribution(
        "statepool_copy_queue_seconds",
        "seconds",
        "How long work on the memory of blocks waited for a thread.",
        lambda s: {(): s.core.copies.queued_seconds},
    ),
    Counter(
        "statepool_copied_bytes",
        "bytes",
        "Bytes of blocks on all ranks that were copied or zeroed, read, written, or summed up.",
        lambda s: {(kind, _engine(s)): s.core.copies.nbytes[kind] for kind in s.core.copies.seconds},
        ("kind", "engine"),
    ),
    Counter(
        "statepool_copy_failures",
        "failures",
        "Work on the memory of blocks that failed.",
        lambda s: {(kind, _engine(s)): s.core.copies.failures[kind] for kind in s.core.copies.seconds},
        ("kind", "engine"),
    ),
    Gauge(
        "statepool_queued_copies",
        "copies",
        "Work on the memory of blocks that is queued or runs.",
        lambda s: _one(s.core.copies.under_way),
    ),
)

# Watchers

_WATCHERS: Metrics = (
    Gauge(
        "statepool_watchers",
        "watchers",
        "Open WatchBlocks streams.",
        lambda s: _one(len(s.watchers)),
    ),
    Gauge(
        "statepool_watch_lag_seconds",
        "seconds",
        "Age of the oldest change that a watcher was not told yet.",
        lambda s: _one(s.watchers.lag),
    ),
    Gauge(
        "statepool_watch_kept_bytes",
        "bytes",
        "Bytes of the latest changes that are kept for watchers.",
        lambda s: _one(s.watchers.news.log.nbytes),
    ),
    Counter(
        "statepool_watch_rows",
        "rows",
        "Blocks that have become findable, or are so no longer, since somebody has watched for the first time.",
        lambda s: _one(s.watchers.news.rows),
    ),
    Counter(
        "statepool_watch_losses",
        "losses",
        "Watchers that have lagged too far behind, and were given another snapshot.",
        lambda s: _one(s.watchers.losses),
    ),
)

# The process


def _build(sources: Sources) -> dict[Labels, float]:
    known = sources.core.description
    return {(_VERSION, platform.python_version(), known.model_type, _engine(sources)): 1}


_PROCESS: Metrics = (
    Gauge(
        "statepool_build_info",
        "info",
        "What serves, and which model; always 1.",
        _build,
        ("version", "python", "model_type", "engine"),
    ),
    Gauge(
        "statepool_event_loop_lag_seconds",
        "seconds",
        "Longest delay of the event loop within the last ten seconds.",
        lambda s: _one(s.heartbeat.lag),
    ),
    Gauge(
        "statepool_part_up",
        "",
        "Whether a background part works, 1 or 0; the death of any ends readiness.",
        lambda s: _by({part.name: float(not part.failure) for part in s.supervisor.parts}),
        ("part",),
    ),
    Gauge(
        "statepool_ready",
        "",
        "Whether health is SERVING, 1 or 0: no part is dead, no copy stalled, the journal has room, nothing drains.",
        lambda s: _one(float(s.health.is_ready)),
    ),
    Gauge(
        "statepool_draining",
        "",
        "Whether the server drains or has drained, 1 or 0.",
        lambda s: _one(float(s.drain.begun.is_set())),
    ),
    Gauge(
        "statepool_journal_room_bytes",
        "bytes",
        "Bytes to the end of the journal's segment; the next is begun at half. No sample: no journal.",
        lambda s: _one(s.core.ledger.journal.room_bytes) if s.core.ledger.journal else {},
    ),
    Counter(
        "statepool_journal_appended_bytes",
        "bytes",
        "Bytes that were appended to the journal.",
        lambda s: _one(s.core.ledger.journal.appended_bytes) if s.core.ledger.journal else {},
    ),
    Counter(
        "statepool_journal_records",
        "records",
        "Acts that were written down.",
        lambda s: _one(s.core.ledger.journal.records) if s.core.ledger.journal else {},
    ),
    Counter(
        "statepool_journal_snapshots",
        "snapshots",
        "Snapshots that were written, or could not be.",
        lambda s: (
            _by({"written": s.core.ledger.journal.snapshots, "failed": s.core.ledger.failed_snapshots})
            if s.core.ledger.journal
            else {}
        ),
        ("outcome",),
    ),
)


# Transfers


def _by_path(counts: Mapping[DataPath, float]) -> dict[Labels, float]:
    return _by({path.name.lower(): counts.get(path, 0) for path in DataPath})


_TRANSFERS: Metrics = (
    Counter(
        "statepool_received_transfers",
        "transfers",
        "Transfers that were received whole from other servers, by the way of their bytes.",
        lambda s: _by_path(s.paths.transfers),
        ("data_path",),
    ),
    Counter(
        "statepool_received_bytes",
        "bytes",
        "Bytes of received transfers, of all ranks, by their way.",
        lambda s: _by_path(s.paths.nbytes),
        ("data_path",),
    ),
    Counter(
        "statepool_data_path_failures",
        "failures",
        "Transfers that could not be received one way, by the reason; another may have succeeded.",
        lambda s: {(path.name.lower(), reason): count for (path, reason), count in s.paths.failures.items()},
        ("data_path", "reason"),
    ),
    Gauge(
        "statepool_nixl_reads",
        "reads",
        "Reads over NIXL whose bytes may still land; their blocks are nobody's until they have ended.",
        lambda s: _one(s.paths.unsettled_reads),
    ),
)

CATALOGUE: Metrics = (*_BLOCKS, *_SESSIONS, *_CALLS, *_WATCHERS, *_MEMORY, *_TRANSFERS, *_PROCESS)
"""Every metric, in the order of the exposition."""
