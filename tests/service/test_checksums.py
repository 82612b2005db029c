"""Guarantee: bytes of a committed block that change are found, and the block is handed out to nobody again."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.servers import BLOCK_TOKENS, CAPACITY, IMAGE_BYTES, Server, Servers, until
from statepool import (
    Admission,
    AsyncClient,
    BadFieldError,
    BlockRefs,
    BlockState,
    ChecksumMismatchError,
    Client,
    FeatureUnavailableError,
    Schedules,
    Session,
)

COMMAND = Path(sys.executable).with_name("statepool")
RANKS = 2
STATE_BYTE = 256 + 5
"""A byte of the second state of a block; the bytes from 128 to 256 are padding."""
LAZY = ("--checksums", "scrub", "--scrub-rate", "1")
"""Takes checksums, and compares a block in the background every quarter of an hour or so."""


@pytest.fixture
def lookup(servers: Servers) -> Server:
    """Shares a server that compares what it hands out, and hardly anything else."""
    return servers.shared("--checksums", "lookup", "--scrub-rate", "1")


def flip(server: Server, blocks: BlockRefs, rank: int = 0, byte: int = STATE_BYTE) -> None:
    """Changes one bit of one block in the file that is mapped as the arena of a rank, as a stray write does."""
    arenas = sorted(path for path in server.state_dir.rglob("*") if path.stat().st_size == (CAPACITY + 1) * IMAGE_BYTES)
    assert len(arenas) == RANKS
    with arenas[rank].open("r+b", buffering=0) as arena:
        place = int(blocks.block_ids[0]) * IMAGE_BYTES + byte
        arena.seek(place)
        before = arena.read(1)
        arena.seek(place)
        arena.write(bytes([before[0] ^ 1]))


def commit(client: Client, session: Session, name: bytes = b"a", boundary: int = BLOCK_TOKENS) -> BlockRefs:
    """Writes, commits and gives back a block, and waits for its checksum."""
    block = session.allocate_blocks(1)
    session.write_blocks(block, np.full((1, IMAGE_BYTES), 7, np.uint8))
    session.commit_blocks(block, prefix_hashes=[name], boundary_tokens=boundary, written_through_tokens=boundary)
    session.free_blocks(block)
    until(lambda: client.verify_integrity().unverified_blocks == 0, "its checksum to be taken")
    return block


def restore(client: Client, session: Session) -> None:
    """Releases what was condemned, and proves that every block can be had again."""
    client.release_quarantine(condemned=True)
    for page in client.list_blocks(states=[BlockState.EVICTABLE, BlockState.SHARED]):
        session.evict_blocks(page.blocks)
    until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "every block to be free")


def is_condemned(client: Client, block: BlockRefs) -> bool:
    """Tells whether a block is in quarantine."""
    pages = list(client.list_blocks(states=[BlockState.QUARANTINED]))
    return [(page.blocks == block) for page in pages] == [True]


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_lookup(lookup: Server, rank: int) -> None:
    """A changed block is refused with DATA_LOSS instead of being handed out, and found by nobody from then on."""
    with lookup.client() as client, client.create_session(60.0) as session:
        shallow, deep = commit(client, session, b"a"), commit(client, session, b"b", 2 * BLOCK_TOKENS)
        hit = session.lookup_prefix([b"a", b"b"])
        assert hit is not None
        session.free_blocks(hit.block)
        flip(lookup, deep, rank)

        with pytest.raises(ChecksumMismatchError) as refused:
            session.lookup_prefix([b"a", b"b"])

        assert refused.value.metadata == {"block": str(deep.block_ids[0])}
        assert is_condemned(client, deep)
        hit = session.lookup_prefix([b"a", b"b"])
        assert hit is not None
        assert hit.block == shallow
        session.free_blocks(hit.block)
        assert len(session.allocate_blocks(CAPACITY - 1)) == CAPACITY - 1
        session.delete()
        with client.create_session(60.0) as successor:
            assert client.verify_integrity().condemned_blocks == 1
            restore(client, successor)


def test_while_there_was_no_server(servers: Servers) -> None:
    """Checksums outlive the server: what changes before the next one is there is found by it."""
    server = servers.start(*LAZY).wait_until_ready()
    with server.client() as client:
        with client.create_session(60.0) as session:
            kept, changed = commit(client, session, b"a"), commit(client, session, b"b", 2 * BLOCK_TOKENS)
        server.kill()
        flip(server, changed, rank=1)
        server.start()
        server.wait_until_ready()

        report = client.verify_integrity()  # or the scrubbing, which begins at once

        assert (report.unverified_blocks, report.condemned_blocks) == (0, 1)
        assert is_condemned(client, changed)
        with client.create_session(60.0) as session:
            hit = session.lookup_prefix([b"a", b"b"])
            assert hit is not None
            assert hit.block == kept


def test_an_admission(lookup: Server) -> None:
    """A step that would begin with changed bytes is refused whole; sent again, it begins with what is left."""
    with lookup.client() as client, client.create_session(60.0) as session:
        block = commit(client, session)
        flip(lookup, block)
        admit = [Admission(1, 2 * BLOCK_TOKENS, prefix_hashes=[b"a"])]
        with session.scheduler() as scheduler:
            with pytest.raises(ChecksumMismatchError):
                scheduler.step(admit=admit)

            assert scheduler.step(admit=admit).admissions.num_computed_tokens.tolist() == [0]
            assert is_condemned(client, block)
            scheduler.step(finish=[1])
        restore(client, session)


def test_a_repeated_step_gets_its_answer(lookup: Server) -> None:
    """A step that was applied before its hit changed is answered as it was; only its sequence cannot go on."""
    with lookup.client() as client, client.create_session(60.0) as session:
        block = commit(client, session)
        admit = [Admission(1, 2 * BLOCK_TOKENS, prefix_hashes=[b"a"])]
        outcome = session.step(1, admit=admit)
        assert outcome.admissions.num_computed_tokens.tolist() == [BLOCK_TOKENS]
        flip(lookup, block)
        with pytest.raises(ChecksumMismatchError):
            session.lookup_prefix([b"a"])

        assert session.step(1, admit=admit).digest == outcome.digest
        with pytest.raises(ChecksumMismatchError):
            session.step(2, schedule=Schedules([1], 1))
        session.step(2, admit=[Admission(2, 4)], schedule=Schedules([2], 4))
        session.step(3, finish=[1, 2])
        restore(client, session)


def test_the_background(servers: Servers) -> None:
    """A changed block is found without anybody asking for it; its holder reads it no more."""
    server = servers.shared("--checksums", "scrub")
    with server.client() as client, client.create_session(60.0) as session:
        block = commit(client, session)
        hit = session.lookup_prefix([b"a"])
        assert hit is not None
        flip(server, block)

        until(lambda: is_condemned(client, block), "the change to be found")

        with pytest.raises(ChecksumMismatchError):
            session.read_images(hit.block)
        session.free_blocks(hit.block)
        restore(client, session)


def test_asking_for_it(servers: Servers) -> None:
    """VerifyIntegrity compares all blocks and names those that have changed, once; the command says so as well."""
    server = servers.shared(*LAZY)
    with server.client() as client, client.create_session(60.0) as session:
        sound, changed = commit(client, session, b"a"), commit(client, session, b"b")
        assert _verify(server) == (0, [], 0)
        flip(server, changed)

        report = client.verify_integrity()

        assert (report.verified_blocks, report.unverified_blocks) == (2, 0)
        assert (report.condemned, report.condemned_blocks) == (changed, 1)
        assert client.verify_integrity().condemned == BlockRefs.empty()
        assert _verify(server) == (1, [], 1)
        flip(server, sound)
        assert _verify(server) == (1, sound.block_ids.tolist(), 2)
        assert client.release_quarantine(condemned=True) == 2
        restore(client, session)


def _verify(server: Server) -> tuple[int, list[int], int]:
    done = subprocess.run([COMMAND, "verify", "--target", server.target, "--json"], capture_output=True, check=False)
    assert done.stdout, done.stderr
    facts = json.loads(done.stdout)
    return done.returncode, facts["condemned"], facts["condemned_blocks"]


async def test_asking_for_it_async(servers: Servers) -> None:
    """The client for asyncio asks the same, and releases what was found."""
    server = servers.shared(*LAZY)
    with server.client() as client, client.create_session(60.0) as session:
        flip(server, commit(client, session))

        async with AsyncClient(server.target) as aio:
            report = await aio.verify_integrity()
            released = await aio.release_quarantine(condemned=True)

        assert (report.condemned_blocks, released) == (1, 1)
        restore(client, session)


def test_a_late_write_through_a_mapping(servers: Servers) -> None:
    """A writer that still maps a block which was committed long ago is caught, wherever in its states it writes."""
    server = servers.shared(*LAZY)
    with server.client() as client, client.create_session(60.0) as session:
        for byte in (0, 127, STATE_BYTE, IMAGE_BYTES - 256 + 63):
            block = commit(client, session)
            flip(server, block, byte=byte)
            assert client.verify_integrity().condemned == block
            restore(client, session)


def test_a_restart(servers: Servers) -> None:
    """A server that was killed still hands nothing out that was found changed; it takes the other checksums anew."""
    server = servers.start(*LAZY).wait_until_ready()
    with server.client() as client, client.create_session(60.0, resume_within=60.0) as session:
        sound, changed = commit(client, session, b"a"), commit(client, session, b"b")
        flip(server, changed)
        assert client.verify_integrity().condemned == changed
        server.kill()
        server.start()
        server.wait_until_ready()

        assert session.lookup_prefix([b"b"]) is None
        assert is_condemned(client, changed)
        hit = session.lookup_prefix([b"a"])
        assert hit is not None
        session.free_blocks(hit.block)
        until(lambda: client.verify_integrity().verified_blocks == 1, "its checksum to be taken")
        flip(server, sound)
        assert client.verify_integrity().condemned_blocks == 2
        restore(client, session)


def test_padding_is_nobodys_state(servers: Servers) -> None:
    """What lies between the states is not compared."""
    server = servers.shared(*LAZY)
    with server.client() as client, client.create_session(60.0) as session:
        flip(server, commit(client, session), byte=130)

        assert client.verify_integrity().condemned == BlockRefs.empty()
        restore(client, session)


def test_a_block_that_is_written_anew(servers: Servers) -> None:
    """A checksum is good for one life of a block: evicted and committed with other bytes, it is as sound as before."""
    server = servers.shared("--checksums", "lookup")
    with server.client() as client, client.create_session(60.0) as session:
        for number in range(40):
            blocks = session.allocate_blocks(CAPACITY)
            session.write_blocks(blocks, np.full((CAPACITY, IMAGE_BYTES), number, np.uint8))
            hashes = [b"%d.%d" % (number, row) for row in range(CAPACITY)]
            session.commit_blocks(blocks, prefix_hashes=hashes, boundary_tokens=16, written_through_tokens=16)
            session.free_blocks(blocks)
            assert session.lookup_prefix(hashes) is not None
            session.evict_blocks(prefix_hashes=hashes)
            client.verify_integrity()
            session.delete()
            session = client.create_session(60.0)
        assert client.verify_integrity().condemned_blocks == 0
        restore(client, session)
        session.close()


def _both(client: Client) -> object:
    return client.release_quarantine(1, condemned=True)


@pytest.mark.parametrize(
    ("call", "expected"), [(Client.verify_integrity, FeatureUnavailableError), (_both, BadFieldError)]
)
def test_what_cannot_be_asked(client: Client, call: Callable[[Client], object], expected: type[Exception]) -> None:
    """A server without checksums verifies nothing; an attachment and condemned blocks are not released in one call."""
    with pytest.raises(expected):
        call(client)
