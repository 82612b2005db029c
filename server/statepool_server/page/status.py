"""What the status page shows, as JSON: no owner keys, hashes or namespaces, since whoever can connect may read it."""

import json
import time
from importlib.metadata import version

from statepool_server.metrics.metric import Sources
from statepool_server.page.block_map import block_map
from statepool_server.web import Page

MOST_SESSIONS = 64
"""Sessions that are told: those with the most blocks."""
FRESH_SECONDS = 0.5
"""How long an answer is good, so that a crowd of browsers costs no more than two."""

_VERSION = version("statepool")


class Status:
    """Tells what there is, at most every `FRESH_SECONDS` anew."""

    def __init__(self, sources: Sources) -> None:
        """Begins.

        Args:
            sources: Where numbers are read.
        """
        self._sources = sources
        self._page = Page(b"", "application/json")
        self._told_at = -FRESH_SECONDS

    def page(self, _accept: str) -> Page:
        """Tells it as JSON."""
        now = time.monotonic()
        if now - self._told_at >= FRESH_SECONDS:
            self._told_at = now
            self._page = Page(json.dumps(self._facts(now)).encode(), "application/json")
        return self._page

    def _facts(self, now: float) -> dict[str, object]:
        core, pool = self._sources.core, self._sources.core.pool
        per_cell, cells = block_map(pool.blocks)
        usage = pool.usage()
        return {
            "version": _VERSION,
            "model_type": core.description.model_type,
            "block_bytes": core.description.layout.block.image_bytes,
            "incarnation": f"{core.incarnation:016x}",
            "uptime_seconds": core.uptime_ns / 1e9,
            "is_draining": self._sources.drain.begun.is_set(),
            "dead_parts": {part.name: part.failure for part in self._sources.supervisor.parts if part.failure},
            "time": now,
            "capacity": pool.capacity,
            "usage": usage._asdict(),
            "condemned": pool.blocks.condemned_count,
            "fences": len(pool.attachments.fences),
            "attachments": len(pool.attachments.live),
            "map": {"blocks_per_cell": per_cell, "cells": cells},
            "sessions": self._sessions(now),
            "queues": {
                "calls": core.admission.calls.under_way,
                "streams": core.admission.streams.under_way,
                "copies": core.copies.under_way,
                "waiting allocations": len(core.waiting),
            },
            "loop_lag_seconds": self._sources.heartbeat.lag,
            "totals": self._totals(),
            "steps": {"bounds": self._sources.steps.seconds.bounds, "counts": self._sources.steps.seconds.counts},
        }

    def _sessions(self, now: float) -> list[dict[str, object]]:
        largest = sorted(self._sources.core.pool.sessions, key=lambda session: -session.block_count)
        return [
            {
                "session_id": session.session_id,
                "epoch": session.epoch,
                "blocks": session.block_count,
                "seconds_left": session.expires_ns / 1e9 - now,
            }
            for session in largest[:MOST_SESSIONS]
        ]

    def _totals(self) -> dict[str, float]:
        core, tally = self._sources.core, self._sources.core.pool.tally
        return {
            "steps": tally.steady_steps + tally.planned_steps,
            "calls": sum(self._sources.calls.counts.values()),
            "allocated blocks": tally.allocated_blocks,
            "evicted blocks": tally.evicted_blocks,
            "commits": tally.commits,
            "copied bytes": sum(core.copies.nbytes.values()),
            "refusals": sum(core.refusals.values()),
            "prompt tokens": tally.prompt_tokens,
            "hit tokens": tally.hit_tokens,
        }
