"""Guarantee: a server that dies at the worst moments, over and over, answers its clients as if it had never died."""

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import pytest

from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers
from statepool import BlockBusyError, Session, StepBuilder, UnavailableError

T = TypeVar("T")

LONG = 600.0
ROUNDS = 3
SPEC = ("--num-spec", "2")
MOMENTS = {
    "before an act": "act=50+1*kill",
    "before it is written down": "journal.before=45+1*kill",
    "after it was written down": "journal.after=48+1*kill",
    "before a copy": "copy=15+1*kill",
    "in the middle of a copy": "copy.half=3+1*kill",
    "between the stages of a copy": "stage=10+1*kill",
    "before an answer": "answer=12+1*kill",
}
"""Where each life of the server ends, and when."""


class Reviver:
    """Starts a server again whenever it has died.

    Attributes:
        deaths: How often that was.
    """

    def __init__(self, server: Server) -> None:
        self.deaths = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Lets the server live and die as it likes."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.05):
            if self._server.process.poll() is not None:
                self.deaths += 1
                self._server.start()


@pytest.fixture(params=MOMENTS)
def crashing(servers: Servers, request: pytest.FixtureRequest) -> Iterator[tuple[Server, Reviver]]:
    """Starts a server that dies every now and then, and is started again."""
    server = servers.start(*SPEC, environment={"STATEPOOL_FAILPOINTS": MOMENTS[request.param]})
    server.wait_until_ready()
    reviver = Reviver(server)
    yield server, reviver
    reviver.close()
    server.process.kill()
    server.wait()


def _until_done(stream: Callable[..., T], *arguments: object) -> T:
    """Repeats what no client repeats by itself: a stream of bytes."""
    while True:
        try:
            return stream(*arguments)
        except (UnavailableError, BlockBusyError):
            continue


def _blocks_and_copies(session: Session) -> Iterator[object]:
    """Writes blocks, shifts them in place, swaps them, commits and finds them; yields everything that can be seen."""
    random = np.random.default_rng(3)
    for number in range(ROUNDS):
        blocks = session.allocate_blocks(3)
        yield blocks.block_ids.tolist(), blocks.generations.tolist()
        images = random.integers(0, 256, (3, 1024), np.uint8)
        _until_done(session.write_blocks, blocks, images)
        session.copy_blocks(src=blocks[:1], dst=blocks[:1], token_bias=1)
        session.copy_blocks(src=blocks[1:], dst=blocks[1:][np.array([1, 0])], token_bias=number % 3)
        yield _until_done(session.read_images, blocks).tobytes()
        name = bytes([number]) * 16
        session.commit_blocks(
            blocks[:1],
            prefix_hashes=[name],
            boundary_tokens=[BLOCK_TOKENS],
            written_through_tokens=[BLOCK_TOKENS],
        )
        session.free_blocks(blocks)
        hit = session.lookup_prefix([name])
        assert hit is not None
        yield hit.block.block_ids.tolist(), _until_done(session.read_images, hit.block).tobytes()
        session.free_blocks(hit.block)


def _steps(session: Session) -> Iterator[object]:
    """Runs a sequence with speculation over many boundaries, so that states are shifted, moved and found."""
    builder = StepBuilder(BLOCK_TOKENS, namespace="m")
    with session.scheduler() as scheduler:

        def step() -> object:
            outcome = scheduler.step(**builder.step())
            builder.applied(outcome)
            return outcome.digest, outcome.tables.block_ids.tolist(), outcome.published_blocks

        builder.admit(1, list(range(24)))
        yield step()
        while builder.num_left(1):
            builder.schedule_prefill(1, budget=BLOCK_TOKENS)
            yield step()
            at_end = builder.num_left(1) == builder.num_scheduled(1)
            builder.commit(1, [7] if at_end else [])
            if at_end:
                break
        for number in range(ROUNDS * 6):
            builder.schedule(1, 3, 2)
            yield step()
            builder.commit(1, list(range(1 + number % 3)))
        builder.finish(1)
        yield step()


def _seen(server: Server) -> list[object]:
    with server.client(DEADLINE_SECONDS) as client, client.create_session(LONG, resume_within=LONG) as session:
        return [*_blocks_and_copies(session), *_steps(session)]


@pytest.fixture(scope="module")
def expected(servers: Servers) -> list[object]:
    """Sees what a server answers that lives."""
    return _seen(servers.start(*SPEC).wait_until_ready())


@pytest.mark.timeout(400)
def test_every_moment(expected: list[object], crashing: tuple[Server, Reviver]) -> None:
    """Ids, generations, digests, bytes: all is the same as at a server that lives."""
    server, reviver = crashing

    seen = _seen(server)

    assert reviver.deaths > 0
    assert seen == expected
