"""What checksums cost: servers with and without them, side by side in one run, in short rounds that take turns."""

import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from service.servers import Server, Servers, fast_folder, until
from statepool import ALL_RUNNING, Admission, Client, Commits, Schedules, Session

BLOCK_TOKENS = 2**20
"""No sequence crosses a boundary while it is measured."""
BLOCK_BYTES = 2**20
COMMITTED = 128
SEQUENCES = 64
ROUNDS = 25
STEPS, LOOKUPS = 100, 20
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


def _start(servers: Servers, model: Path, *flags: str) -> Server:
    shape = ("--model-config", str(model), "--tp-size", "1", "--block-tokens", str(BLOCK_TOKENS))
    return servers.start(*shape, "--blocks", str(COMMITTED + 2 * SEQUENCES), *flags).wait_until_ready()


def _fill(client: Client, session: Session) -> None:
    blocks = session.allocate_blocks(COMMITTED)
    hashes = [b"%d" % row for row in range(COMMITTED)]
    session.commit_blocks(
        blocks, prefix_hashes=hashes, boundary_tokens=BLOCK_TOKENS, written_through_tokens=BLOCK_TOKENS
    )
    if "checksums:off" not in client.get_pool().features:
        until(lambda: client.verify_integrity(timeout=60.0).unverified_blocks == 0, "the checksums to be taken")


def _stepping(session: Session, stack: ExitStack) -> Callable[[], object]:
    """Begins sequences; gives a step in which each decodes one token."""
    scheduler = stack.enter_context(session.scheduler())
    ids = list(range(1, SEQUENCES + 1))
    scheduler.step(admit=[Admission(number, 4) for number in ids])
    scheduler.step(schedule=Schedules(ids, 4))
    return lambda: scheduler.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))


def _looking_up(session: Session) -> Callable[[], object]:
    def once() -> None:
        hit = session.lookup_prefix([b"7"])
        assert hit is not None
        session.free_blocks(hit.block)

    return once


def _seconds(call: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - started) / times


def _compare(plain: Callable[[], object], checked: Callable[[], object], times: int) -> tuple[float, float, float]:
    """Takes turns; returns the median of the rounds' ratios, and the medians of both in seconds."""
    rounds = [(_seconds(plain, times), _seconds(checked, times)) for _ in range(ROUNDS)]
    ratio = statistics.median(checked / plain for plain, checked in rounds)
    return ratio, statistics.median(first for first, _ in rounds), statistics.median(last for _, last in rounds)


def rows() -> list[Row]:
    """Measures everything."""
    with fast_folder() as folder, ExitStack() as stack:
        servers = Servers(folder)
        stack.callback(servers.stop)
        state = {"name": "state", "kind": "temporal", "shape": (BLOCK_BYTES // 4,), "dtype": "float32"}
        model = folder / "model.json"
        model.write_text(json.dumps({"model_type": "custom", "states": [state]}), encoding="utf-8")
        sessions = []
        for flags in (
            (),
            ("--checksums", "scrub", "--scrub-rate", "256MiB"),
            ("--checksums", "lookup", "--scrub-rate", "1"),
        ):
            client = stack.enter_context(_start(servers, model, *flags).client())
            session = stack.enter_context(client.create_session(60.0))
            _fill(client, session)
            sessions.append(session)
        plain, scrubbed, vouching = sessions
        lookup, looked_up, vouched = _compare(_looking_up(plain), _looking_up(vouching), LOOKUPS)
        step, _, _ = _compare(_stepping(plain, stack), _stepping(scrubbed, stack), STEPS)
    return [
        (f"step of {SEQUENCES}, scrubbing at 256 MiB/s / no checksums", step, "x", ""),
        ("look up and free 1 MiB, vouched for / not", lookup, "x", ""),
        ("  one vouched for", vouched * 1e6, "us", ""),
        ("  one not vouched for", looked_up * 1e6, "us", ""),
    ]


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:60} {value:8.2f} {unit:6} {bar}")
