"""Guarantee: every metric has a help text and a unit, and moves by as much as what it counts, when that happens."""

import contextlib
import re
import signal
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.raw import writing
from service.scraping import FLAGS, address, get, moved, scrape
from service.servers import BLOCK_TOKENS, CAPACITY, IMAGE_BYTES, Server, Servers, until
from service.test_checksums import LAZY, flip, restore
from service.test_checksums import commit as commit_checked
from statepool import ALL_RUNNING, Admission, Client, Commits, ImportedState, PoolExhaustedError, Schedules, Session
from statepool.torch import attach
from statepool_server.metrics.catalogue import CATALOGUE

STATE_BYTES = 384
"""Bytes of the states of a block on one rank, without padding."""
RANKS = 2
SUFFIXES = ("_total", "_count")
ELSEWHERE = ("server/test_copying.py", "transfer/test_nixl.py")
"""Other tests that see metrics move."""


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server with an HTTP listener and a small journal."""
    return servers.shared(*FLAGS, "--journal-bytes", "6MiB", "--max-message-bytes", "512KiB", "--min-ttl", "50ms")


class Watch:
    """Compares what a server tells before and after something."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._before = scrape(server)

    def shows(self, changes: dict[str, float]) -> bool:
        """Tells whether samples have changed by so much since the watch began."""
        changed = moved(self._before, scrape(self.server))
        return all(changed.get(key, 0.0) == by for key, by in changes.items())

    def until(self, changes: dict[str, float]) -> None:
        """Waits until samples have changed by exactly so much: what is answered may be counted a moment later."""
        try:
            until(lambda: self.shows(changes), "the metrics to move")
        except AssertionError as error:
            changed = moved(self._before, scrape(self.server))
            raise AssertionError({key: (by, changed.get(key, 0.0)) for key, by in changes.items()}) from error


@pytest.fixture
def watch(server: Server) -> Watch:
    """Scrapes the server before a test."""
    return Watch(server)


def rpc(service: str, method: str, code: str = "OK") -> str:
    """Names a counter of calls."""
    return f"statepool_rpcs_total{{code={code},method={method},service=statepool.v1.{service}}}"


def commit(session: Session, blocks: object, *hashes: bytes) -> None:
    """Commits blocks at their first boundary."""
    session.commit_blocks(
        blocks,  # type: ignore[arg-type]
        prefix_hashes=hashes,
        boundary_tokens=[BLOCK_TOKENS] * len(hashes),
        written_through_tokens=[BLOCK_TOKENS] * len(hashes),
    )


def test_blocks_and_copies(watch: Watch, session: Session) -> None:
    """Allocating and copying is counted in blocks, bytes, calls, and seconds."""
    blocks = session.allocate_blocks(3)
    session.copy_blocks(src=blocks[:1], dst=blocks[1:2], token_bias=0)

    watch.until(
        {
            "statepool_blocks{state=free}": -3,
            "statepool_blocks{state=held}": 3,
            "statepool_allocated_blocks_total": 3,
            "statepool_copied_bytes_total{engine=host,kind=copy}": RANKS * (3 * IMAGE_BYTES + STATE_BYTES),
            "statepool_copy_seconds_count{engine=host,kind=copy}": 2,
            "statepool_copy_queue_seconds_count": 2,
            rpc("BlockService", "AllocateBlocks"): 1,
            "statepool_rpc_seconds_count{method=CopyBlocks,service=statepool.v1.BlockService}": 1,
        }
    )
    session.free_blocks(blocks)
    watch.until({"statepool_blocks{state=free}": 0, "statepool_released_blocks_total": 3})


def test_bytes(watch: Watch, session: Session) -> None:
    """Images that are written and read are counted by their bytes, chunk by chunk."""
    blocks = session.allocate_blocks(1, zero=False)

    session.write_blocks(blocks, bytes(IMAGE_BYTES))
    list(session.read_blocks(blocks))

    chunks = 4
    for kind in ("read", "write"):
        watch.until(
            {
                f"statepool_copied_bytes_total{{engine=host,kind={kind}}}": IMAGE_BYTES,
                f"statepool_copy_seconds_count{{engine=host,kind={kind}}}": chunks,
            }
        )


def test_prefixes(watch: Watch, session: Session) -> None:
    """Commits, duplicates, searches with and without success, and evictions are told apart."""
    blocks = session.allocate_blocks(3, zero=False)
    commit(session, blocks[:2], b"a", b"b")
    commit(session, blocks[2:], b"a")
    session.lookup_prefix([b"a", b"b"])
    session.lookup_prefix([b"none"])
    session.lookup_prefix([b"nothing"])

    watch.until(
        {
            "statepool_commits_total{outcome=new}": 2,
            "statepool_commits_total{outcome=duplicate}": 1,
            "statepool_findable_blocks": 2,
            "statepool_prefix_searches_total{by=lookup,outcome=hit}": 1,
            "statepool_prefix_searches_total{by=lookup,outcome=miss}": 2,
        }
    )
    session.evict_blocks(blocks[:2])
    watch.until({"statepool_evicted_blocks_total{reason=request}": 2, "statepool_findable_blocks": 0})


def test_evictions(watch: Watch, session: Session) -> None:
    """Blocks that nobody holds are evictable, and evicted when others need room."""
    blocks = session.allocate_blocks(2, zero=False)
    commit(session, blocks, b"a", b"b")
    session.free_blocks(blocks)
    watch.until({"statepool_blocks{state=evictable}": 2, "statepool_evicted_blocks_total{reason=room}": 0})

    session.allocate_blocks(CAPACITY - 1, zero=False)

    watch.until({"statepool_blocks{state=evictable}": 1, "statepool_evicted_blocks_total{reason=room}": 1})


def test_waits(watch: Watch, session: Session) -> None:
    """Whoever waits for blocks is counted while it waits, and its time and refusal afterwards."""
    session.allocate_blocks(CAPACITY, zero=False)

    def wait() -> None:
        with contextlib.suppress(PoolExhaustedError):
            session.allocate_blocks(1, max_wait=1.0)

    waiter = threading.Thread(target=wait)
    waiter.start()
    watch.until({"statepool_waiting_allocations": 1, "statepool_current_rpcs{kind=call}": 1})
    waiter.join()

    watch.until(
        {
            "statepool_waiting_allocations": 0,
            "statepool_allocation_wait_seconds_count": 1,
            "statepool_refusals_total{reason=POOL_EXHAUSTED}": 1,
            rpc("BlockService", "AllocateBlocks", "RESOURCE_EXHAUSTED"): 1,
        }
    )


def test_sessions(server: Server, client: Client, watch: Watch) -> None:
    """Sessions are counted by how they begin and end; their streams while they are open."""
    client.create_session(60.0, owner_key="a")
    with server.client() as other:
        taken = other.create_session(60.0, owner_key="a", take_over=True)
        watch.until(
            {
                "statepool_sessions": 1,
                "statepool_opened_sessions_total": 1,
                "statepool_taken_over_sessions_total": 1,
            }
        )
        taken.delete()
    with server.client() as lost:
        lost.create_session(0.1)
        lost._keeper.close()  # noqa: SLF001 — a scheduler that stands still
        watch.until(
            {
                "statepool_sessions": 0,
                "statepool_ended_sessions_total{reason=deleted}": 1,
                "statepool_ended_sessions_total{reason=expired}": 1,
            }
        )


def test_watchers(watch: Watch, client: Client, session: Session) -> None:
    """Watchers are counted, and what they are told; the bytes that are kept for them do not go with them."""
    stream = client.watch_blocks()
    next(stream)
    blocks = session.allocate_blocks(2, zero=False)
    commit(session, blocks, b"a", b"b")
    next(stream)  # else what is taken back at once would not be told
    session.evict_blocks(prefix_hashes=[b"a"])

    watch.until({"statepool_watchers": 1, "statepool_watch_rows_total": 3, "statepool_watch_losses_total": 0})
    assert scrape(watch.server)["statepool_watch_kept_bytes"] > 0
    stream.close()
    watch.until({"statepool_watchers": 0})
    assert scrape(watch.server)["statepool_watch_lag_seconds"] == 0


def test_steps(watch: Watch, session: Session) -> None:
    """Steps, sequences, prompt tokens and those of them that were found are counted."""
    imported = session.allocate_blocks(1)
    with session.scheduler() as scheduler:
        prompt = 2 * BLOCK_TOKENS + 1
        scheduler.step(admit=[Admission(1, prompt, [b"a", b"b"])], schedule=Schedules([1], BLOCK_TOKENS))
        scheduler.step(
            commit=Commits([1], prefix_hashes=[b"a"], hash_rows=[0], boundary_tokens=[BLOCK_TOKENS]),
            schedule=Schedules([1], 2),
        )
        scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
        scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
        watch.until({"statepool_sequences": 1, "statepool_current_rpcs{kind=stream}": 1})
        scheduler.step(
            admit=[Admission(2, prompt, [b"a", b"b"]), Admission(3, 5, imported=ImportedState(imported, 3))],
            commit=Commits(ALL_RUNNING),
        )
        scheduler.step(finish=[1, 2, 3])

        watch.until(
            {
                "statepool_steps_total{kind=planned}": 5,
                "statepool_steps_total{kind=steady}": 1,
                "statepool_step_seconds_count": 6,
                "statepool_sequences": 0,
                "statepool_admitted_sequences_total{state=searched}": 2,
                "statepool_admitted_sequences_total{state=imported}": 1,
                "statepool_finished_sequences_total": 3,
                "statepool_prompt_tokens_total": 2 * prompt,
                "statepool_prompt_hit_tokens_total": BLOCK_TOKENS,
                "statepool_prefix_searches_total{by=admission,outcome=hit}": 1,
                "statepool_prefix_searches_total{by=admission,outcome=miss}": 1,
            }
        )


def test_fences(server: Server, client: Client, watch: Watch) -> None:
    """Attached processes, the fences that they have not answered, and the blocks in quarantine are counted."""
    with attach(client, read_only=True), attach(client) as pool:
        watch.until({"statepool_attachments{access=read_only}": 1, "statepool_attachments{access=read_write}": 1})
        lost = client.create_session(60.0)
        lost.allocate_blocks(2)
        with pool.writing(lost.session_id, lost.epoch):
            lost.delete()
            watch.until(
                {
                    "statepool_raised_fences_total": 1,
                    "statepool_standing_fences": 1,
                    "statepool_quarantined_blocks": 2,
                    "statepool_blocks{state=releasing}": 2,
                }
            )
        watch.until({"statepool_standing_fences": 0, "statepool_quarantined_blocks": 0})


def test_pins(server: Server, watch: Watch, session: Session) -> None:
    """Blocks that a stream writes are busy."""
    blocks = session.allocate_blocks(2)
    with writing(server, session, blocks):
        watch.until({"statepool_busy_blocks": 2})
    watch.until({"statepool_busy_blocks": 0})


def test_condemned(servers: Servers) -> None:
    """Blocks whose bytes have changed are counted until they are pardoned."""
    server = servers.shared(*FLAGS, *LAZY)
    watch = Watch(server)
    with server.client() as client, client.create_session(60.0) as session:
        flip(server, commit_checked(client, session))

        client.verify_integrity()

        watch.until({"statepool_condemned_blocks": 1, "statepool_quarantined_blocks": 1})
        restore(client, session)
    watch.until({"statepool_condemned_blocks": 0, "statepool_quarantined_blocks": 0})


def test_journal(watch: Watch, session: Session) -> None:
    """The journal's bytes and room are told, and the snapshots with which it begins anew."""
    before = scrape(watch.server)

    session.lookup_prefix([bytes(64)] * 4096)

    changed = moved(before, scrape(watch.server))
    assert 64 * 4096 <= changed["statepool_journal_appended_bytes_total"] == -changed["statepool_journal_room_bytes"]
    assert changed["statepool_journal_records_total"] >= 1
    for _ in range(15):
        session.lookup_prefix([bytes(64)] * 4096)
    watch.until({"statepool_journal_snapshots_total{outcome=written}": 1})


def test_loop_lag(server: Server, watch: Watch) -> None:
    """A process that stood still shows in the lag of its event loop."""
    server.process.send_signal(signal.SIGSTOP)
    threading.Event().wait(1.0)  # up to a quarter of it is sleep that was due
    server.process.send_signal(signal.SIGCONT)

    until(lambda: scrape(server)["statepool_event_loop_lag_seconds"] > 0.3, "the lag to show")


def test_draining_and_parts(servers: Servers) -> None:
    """Draining and readiness show, and every background part is up."""
    server = servers.start(*FLAGS).wait_until_ready()
    watch = Watch(server)
    with server.client() as client:
        client.drain(0.0)

    watch.until({"statepool_draining": 1, "statepool_ready": -1})
    parts = {key: up for key, up in scrape(server).items() if key.startswith("statepool_part_up")}
    assert set(parts.values()) == {1.0}
    for name in ("reaper", "attach listener", "verifier", "journal", "stall watch", "heartbeat"):
        assert f"statepool_part_up{{part={name}}}" in parts


def test_what_is_served(server: Server) -> None:
    """What the server is, its blocks and its arenas do not change."""
    told = scrape(server)

    assert told["statepool_block_size_bytes"] == IMAGE_BYTES
    for rank in range(RANKS):
        assert told[f"statepool_arena_bytes{{device=cpu,rank={rank}}}"] == (CAPACITY + 1) * IMAGE_BYTES
    (build,) = (key for key in told if key.startswith("statepool_build_info"))
    assert "engine=host,model_type=custom," in build


def test_names(server: Server) -> None:
    """Every metric has a help text and a unit in its name, and is one of the catalogue or of the process."""
    with get(server, "/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))

    own = [family for family in families if family.name.startswith("statepool_")]
    assert {family.name for family in own} == {metric.name for metric in CATALOGUE}
    assert {family.name.partition("_")[0] for family in families} == {"statepool", "process", "python"}
    for metric in CATALOGUE:
        assert metric.help.endswith(".")
        assert re.fullmatch(r"statepool(_[a-z]+)+", metric.name)
        assert metric.name.endswith(f"_{metric.unit}") if metric.unit else "1 or 0" in metric.help


def test_every_metric_is_tested() -> None:
    """Every metric is named by a test that sees it move, but for those that never do here."""
    expected = {
        re.sub(f"({'|'.join(SUFFIXES)})$", "", name)
        for path in (Path(__file__), *(Path(__file__).parents[1] / name for name in ELSEWHERE))
        for name in re.findall(r"\bstatepool_[a-z_]+", path.read_text(encoding="utf-8"))
    }

    assert {metric.name for metric in CATALOGUE} - expected == set()


def test_nothing_listens_unless_told(servers: Servers) -> None:
    """Without the setting there is no HTTP listener."""
    server = servers.shared()
    assert address(server).endswith(":None")


def test_get_metrics(client: Client, server: Server) -> None:
    """The RPC tells what a scrape tells."""
    with client.create_session(60.0):
        told = client.get_metrics()

    scraped = scrape(server)
    assert told.incarnation == client.get_server_info().incarnation
    assert {sample.name for sample in told.samples} == {key.partition("{")[0] for key in scraped}
    assert told.total("statepool_sessions") == 1
    assert told.by("statepool_blocks", "state") == {"free": CAPACITY, "evictable": 0, "held": 0, "releasing": 0}
    assert told.total("statepool_blocks", state="free") == CAPACITY
    assert told.total("statepool_none") == 0
