"""Guarantee: who acts for one tenant can neither see, nor use, nor crowd out what is another's."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from security.authority import Authority
from security.conftest import access_file, client_of, token_of
from service.raw import Stubs, ref_of, refs, refusal_of
from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers, until
from statepool import Admission, BlockRefs, Client, QuotaExceededError, RoleForbiddenError, Schedules
from statepool.channel import error_of_rpc
from statepool.errors import StatepoolError
from statepool.sync.session import Session
from statepool.v1 import block_pb2, session_pb2, transfer_pb2

HASH = b"a prefix"
ACME = "acme/model"
"""A namespace of the one tenant."""
GLOBEX = "globex/model"
"""A namespace of the other."""


@pytest.fixture
def acme(secured: Server, authority: Authority) -> Iterator[Client]:
    """Connects as the scheduler of one tenant, who may have 4 blocks, 2 sessions, 2 calls under way."""
    with client_of(secured, authority, "acme") as client:
        yield client
        until(lambda: client.get_pool().usage.sessions == 0, "the sessions of the test to end")


@pytest.fixture
def globex(secured: Server, authority: Authority) -> Iterator[Client]:
    """Connects as the scheduler of the other tenant."""
    with client_of(secured, authority, "globex") as client:
        yield client


@pytest.fixture
def hooli(secured: Server, authority: Authority) -> Iterator[Client]:
    """Connects as the scheduler of a tenant that may send 20 calls a second."""
    with client_of(secured, authority, "hooli") as client:
        yield client


@pytest.fixture
def owned(acme: Client) -> Iterator[tuple[Session, BlockRefs]]:
    """Opens a session of the one tenant, with two blocks, the first of them committed."""
    with acme.create_session(60.0, owner_key="engine") as session:
        blocks = session.allocate_blocks(2)
        session.commit_blocks(
            blocks[:1],
            namespace=ACME,
            prefix_hashes=[HASH],
            boundary_tokens=[BLOCK_TOKENS],
            written_through_tokens=[BLOCK_TOKENS],
        )
        yield session, blocks
        session.evict_blocks(blocks[:1])


@pytest.fixture
def intruder(secured: Server, authority: Authority) -> Iterator[Stubs]:
    """Connects as the other tenant, without the client library: it can send anything."""
    with _channel(secured, authority, "globex") as channel:
        yield Stubs(channel)


@dataclass(frozen=True)
class Intrusion:
    """What the other tenant has in hand."""

    stubs: Stubs
    """It can send anything."""
    own: Session
    """Its own session."""
    victim: Session
    """The session of the one tenant."""
    blocks: BlockRefs
    """The blocks of that session; the first one is committed."""


Attack = Callable[[Intrusion], object]
"""Makes a call as the other tenant."""

ATTACKS: dict[str, Attack] = {
    "allocate": lambda it: it.stubs.blocks.AllocateBlocks(
        block_pb2.AllocateBlocksRequest(session=ref_of(it.victim), count=1)
    ),
    "free": lambda it: it.stubs.blocks.FreeBlocks(
        block_pb2.FreeBlocksRequest(session=ref_of(it.victim), blocks=refs(it.blocks))
    ),
    "delete the session": lambda it: it.stubs.sessions.DeleteSession(
        session_pb2.DeleteSessionRequest(session=ref_of(it.victim))
    ),
    "see the session": lambda it: it.stubs.sessions.GetSession(
        session_pb2.GetSessionRequest(session_id=it.victim.session_id)
    ),
    "see all sessions": lambda it: it.stubs.sessions.ListSessions(session_pb2.ListSessionsRequest()),
    "keep it alive": lambda it: list(
        it.stubs.sessions.KeepAlive(iter([session_pb2.KeepAliveRequest(sessions=[ref_of(it.own), ref_of(it.victim)])]))
    ),
    "open a session for it": lambda it: it.stubs.sessions.CreateSession(
        session_pb2.CreateSessionRequest(tenant="acme")
    ),
    "retain": lambda it: it.stubs.blocks.RetainBlocks(
        block_pb2.RetainBlocksRequest(session=ref_of(it.own), blocks=refs(it.blocks[:1]))
    ),
    "read": lambda it: list(
        it.stubs.blocks.ReadBlocks(block_pb2.ReadBlocksRequest(session=ref_of(it.own), blocks=refs(it.blocks[:1])))
    ),
    "write": lambda it: it.stubs.blocks.WriteBlocks(
        iter(
            [
                block_pb2.WriteBlocksRequest(
                    header=block_pb2.WriteBlocksHeader(session=ref_of(it.victim), blocks=refs(it.blocks[1:]))
                )
            ]
        )
    ),
    "copy out": lambda it: it.stubs.blocks.CopyBlocks(
        block_pb2.CopyBlocksRequest(
            session=ref_of(it.own), src=refs(it.blocks[:1]), dst=refs(it.own.allocate_blocks(1))
        )
    ),
    "evict by ref": lambda it: it.stubs.blocks.EvictBlocks(
        block_pb2.EvictBlocksRequest(session=ref_of(it.own), blocks=refs(it.blocks[:1]))
    ),
    "evict by hash": lambda it: it.stubs.blocks.EvictBlocks(
        block_pb2.EvictBlocksRequest(session=ref_of(it.own), namespace=ACME, prefix_hashes=[HASH])
    ),
    "look up": lambda it: it.stubs.blocks.LookupPrefix(
        block_pb2.LookupPrefixRequest(session=ref_of(it.own), namespace=ACME, prefix_hashes=[HASH])
    ),
    "look up in no namespace": lambda it: it.stubs.blocks.LookupPrefix(
        block_pb2.LookupPrefixRequest(session=ref_of(it.own), prefix_hashes=[HASH])
    ),
    "poison": lambda it: it.own.commit_blocks(
        it.own.allocate_blocks(1),
        namespace=ACME,
        prefix_hashes=[b"another prefix"],
        boundary_tokens=[BLOCK_TOKENS],
        written_through_tokens=[BLOCK_TOKENS],
    ),
    "lend": lambda it: it.stubs.transfers.CreateTransfer(
        transfer_pb2.CreateTransferRequest(session=ref_of(it.own), token=bytes(16), blocks=refs(it.blocks[:1]))
    ),
    "lend for it": lambda it: it.stubs.transfers.CreateTransfer(
        transfer_pb2.CreateTransferRequest(session=ref_of(it.victim), token=bytes(16), blocks=refs(it.blocks))
    ),
    "receive for it": lambda it: it.stubs.transfers.ReceiveTransfer(
        transfer_pb2.ReceiveTransferRequest(session=ref_of(it.victim), block_count=1)
    ),
    "see all transfers": lambda it: it.stubs.transfers.ListTransfers(transfer_pb2.ListTransfersRequest()),
    "admit by its prefix": lambda it: it.own.step(
        1, admit=[Admission(sequence_id=1, prompt_tokens=2 * BLOCK_TOKENS, prefix_hashes=[HASH], namespace=ACME)]
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_another_tenants_cannot_be_touched(
    name: str, intruder: Stubs, globex: Client, owned: tuple[Session, BlockRefs], scheduler: Client
) -> None:
    """Whatever a tenant sends, ids, epochs and generations of another's included, is refused, and nothing happens."""
    victim, blocks = owned

    def refused(own: Session) -> StatepoolError:
        try:
            ATTACKS[name](Intrusion(intruder, own, victim, blocks))
        except StatepoolError as error:  # of the client library
            return error
        except grpc.RpcError as error:
            return error_of_rpc(error)
        raise AssertionError("it was let in")

    with globex.create_session(60.0) as own:
        assert isinstance(refused(own), RoleForbiddenError)
    assert scheduler.get_session(victim.session_id).block_count == len(blocks)
    assert victim.lookup_prefix([b"another prefix"], namespace=ACME) is None
    assert victim.lookup_prefix([HASH], namespace=ACME) is not None
    victim.free_blocks(blocks[:1])


def test_own_namespaces_can_be_used(globex: Client, owned: tuple[Session, BlockRefs]) -> None:
    """The same hash in a tenant's own namespaces is another prefix, listed names and patterns alike."""
    with globex.create_session(60.0) as session:
        for namespace in ("shared", GLOBEX):
            assert session.lookup_prefix([HASH], namespace=namespace) is None
            blocks = session.allocate_blocks(1)
            session.commit_blocks(
                blocks,
                namespace=namespace,
                prefix_hashes=[HASH],
                boundary_tokens=[BLOCK_TOKENS],
                written_through_tokens=[BLOCK_TOKENS],
            )
            hit = session.lookup_prefix([HASH], namespace=namespace)
            assert hit is not None
            assert hit.block == blocks
            session.evict_blocks(blocks)


def test_owner_keys_are_apart(globex: Client, owned: tuple[Session, BlockRefs], scheduler: Client) -> None:
    """A session cannot be taken over by another tenant who knows, or has chosen, the same owner key."""
    victim, _ = owned
    for stranger in (globex, scheduler):
        with stranger.create_session(60.0, owner_key="engine", take_over=True) as session:
            assert session.session_id != victim.session_id
    assert len(victim.allocate_blocks(1)) == 1
    assert scheduler.get_session(victim.session_id).tenant == "acme"


def test_blocks_of_a_tenant_are_bounded(acme: Client) -> None:
    """All sessions of a tenant together hold as many blocks as it may have, and one more when one was given back."""
    with acme.create_session(60.0) as first, acme.create_session(60.0) as second:
        blocks = first.allocate_blocks(3)
        second.allocate_blocks(1)
        with pytest.raises(QuotaExceededError, match="may have 0 more") as caught:
            second.allocate_blocks(1, max_wait=60.0)
        assert caught.value.retry_after is not None
        first.free_blocks(blocks[:1])
        assert len(second.allocate_blocks(1)) == 1


def test_blocks_of_sequences_are_bounded(acme: Client) -> None:
    """A step that needs more blocks than its tenant may have is refused whole, or admits only as many as fit."""
    step = {
        "admit": [Admission(sequence_id=n, prompt_tokens=BLOCK_TOKENS, namespace=ACME) for n in range(5)],
        "schedule": Schedules(list(range(5)), num_tokens=BLOCK_TOKENS),
    }
    with acme.create_session(60.0) as session:
        with pytest.raises(QuotaExceededError, match="the step needs 5 blocks"):
            session.step(1, **step)  # type: ignore[arg-type]
        outcome = session.step(1, partial_admission=True, **step)  # type: ignore[arg-type]
        assert len(outcome.tables.rows) == 4
        with pytest.raises(QuotaExceededError):
            session.allocate_blocks(1)
        finished = session.step(
            2,
            settled_step=1,
            finish=[0],
            admit=[Admission(sequence_id=9, prompt_tokens=1, namespace=ACME)],
            schedule=Schedules([9], num_tokens=1),
        )
        assert len(finished.tables.rows) == 1


def test_lent_blocks_are_on_the_account(acme: Client) -> None:
    """What a tenant lends is its own until the transfer ends, also when no session of it holds it any more."""
    with acme.create_session(60.0) as session:
        blocks = session.allocate_blocks(3)
        transfer = session.create_transfer(blocks[:2])
        assert len(session.allocate_blocks(1)) == 1
        session.free_blocks(blocks)
        with pytest.raises(QuotaExceededError, match="may have 1 more"):
            session.allocate_blocks(2)
        acme.cancel_transfer(transfer)
        assert len(session.allocate_blocks(3)) == 3


def test_what_is_lent_out_of_the_index_is_on_the_account(acme: Client) -> None:
    """A transfer of blocks that nobody holds, and would be evicted otherwise, needs room on the account."""
    with acme.create_session(60.0) as session:
        cached = session.allocate_blocks(1)
        session.commit_blocks(
            cached,
            namespace=ACME,
            prefix_hashes=[HASH],
            boundary_tokens=[BLOCK_TOKENS],
            written_through_tokens=[BLOCK_TOKENS],
        )
        session.free_blocks(cached)
        held = session.allocate_blocks(4)
        with pytest.raises(QuotaExceededError, match="may have 0 more"):
            session.create_transfer(cached)
        session.free_blocks(held[:1])
        acme.cancel_transfer(session.create_transfer(cached))
        session.evict_blocks(cached)


def test_transfers_of_a_tenant_are_bounded(acme: Client, scheduler: Client) -> None:
    """A tenant has so many transfers open, those of sessions that have ended included; others are not held up by it."""
    with acme.create_session(60.0) as session:
        blocks = session.allocate_blocks(1)
        transfers = [session.create_transfer(blocks) for _ in range(2)]
    with acme.create_session(60.0) as session:
        blocks = session.allocate_blocks(1)
        with pytest.raises(QuotaExceededError, match="has 2 transfers open"):
            session.create_transfer(blocks)
        with scheduler.create_session(60.0) as other:
            transfers.append(other.create_transfer(other.allocate_blocks(1)))
        acme.cancel_transfer(transfers[0])
        transfers.append(session.create_transfer(blocks))
    for transfer in transfers[1:]:
        scheduler.cancel_transfer(transfer)


def test_what_a_tenant_receives_is_bounded(servers: Servers, tmp_path: Path) -> None:
    """A reception needs room for its blocks on the account, before anything is pulled."""
    source = servers.start().wait_until_ready()
    flags = ("--access", str(access_file(tmp_path)), "--allow-peer", source.target)
    server = servers.start(*flags).wait_until_ready()
    with source.client() as there, there.create_session(60.0) as lender:
        transfer = lender.create_transfer(lender.allocate_blocks(3))
        with Client(server.target, token=token_of("acme")) as acme, acme.create_session(60.0) as session:
            blocks = session.allocate_blocks(2)
            with pytest.raises(QuotaExceededError, match="may have 2 more"):
                session.receive_transfer(transfer, source=source.target)
            session.free_blocks(blocks[:1])
            assert len(session.receive_transfer(transfer, source=source.target).blocks) == 3


def test_sessions_of_a_tenant_are_bounded(acme: Client, scheduler: Client) -> None:
    """A tenant has so many sessions; it may take one over when it has all of them; others are not held up by it."""
    with acme.create_session(60.0, owner_key="a"), acme.create_session(60.0) as second:
        with pytest.raises(QuotaExceededError, match="has 2 sessions"):
            acme.create_session(60.0)
        with acme.create_session(60.0, owner_key="a", take_over=True):
            scheduler.create_session(60.0).close()
            assert len(second.allocate_blocks(1)) == 1


def test_calls_of_a_tenant_are_bounded(acme: Client, scheduler: Client, secured: Server, authority: Authority) -> None:
    """A tenant has so many calls under way; what gives something back is still let in, and so are all others."""
    with ExitStack() as stack:
        stub = Stubs(stack.enter_context(_channel(secured, authority, "acme")))
        for _ in range(2):
            stack.callback(stub.sessions.KeepAlive(_never()).cancel)
        until(lambda: _is_refused(acme), "the calls to be under way")
        assert scheduler.get_pool().capacity
        request = session_pb2.DeleteSessionRequest()
        error = refusal_of(lambda: stub.sessions.DeleteSession(request, timeout=DEADLINE_SECONDS))
        assert not isinstance(error, QuotaExceededError)
    until(lambda: not _is_refused(acme), "the calls to end")


def test_rate_of_a_tenant_is_bounded(hooli: Client, scheduler: Client) -> None:
    """Of more calls than a tenant may have in a second some are refused, with a hint that holds, and no one else's."""
    refused = [error for error in (_error_of(hooli.get_pool) for _ in range(80)) if error is not None]

    assert refused
    assert all(isinstance(error, QuotaExceededError) and error.retry_after for error in refused)
    assert not [error for error in (_error_of(scheduler.get_pool) for _ in range(80)) if error is not None]
    until(lambda: _error_of(hooli.get_pool) is None, "the rate to be within its bound")


def test_rate_of_a_stream_is_bounded(secured: Server, authority: Authority, scheduler: Client) -> None:
    """Steps on a stream count as calls do: whoever sends more waits for the answers, and can give back what it has."""
    with (
        client_of(secured, authority, "piper") as piper,
        piper.create_session(60.0) as session,
        session.scheduler() as steps,
    ):
        began = time.monotonic()
        for number in range(1, 41):
            steps.step(settled_step=number - 1)
        assert time.monotonic() - began > 0.9, "40 steps, of which 20 may come at once and 20 in a second"
    assert not [left for left in scheduler.list_sessions() if left.tenant == "piper"]


def test_tenants_outlive_a_server(servers: Servers, tmp_path: Path) -> None:
    """A server that goes on where another was killed knows whose sessions are, and what they may have."""
    server = servers.start("--access", str(access_file(tmp_path)), "--local-roles", "none").wait_until_ready()
    clients = [Client(server.target, token=token_of(name), timeout=DEADLINE_SECONDS) for name in ("acme", "globex")]
    with clients[0] as acme, clients[1] as globex:
        session = acme.create_session(60.0, owner_key="engine", resume_within=60.0)
        session.allocate_blocks(2)
        session.step(1, admit=[Admission(sequence_id=1, prompt_tokens=1, namespace=ACME)])
        session.step(2, settled_step=1, schedule=Schedules([1], num_tokens=1))

        server.kill()
        server.start()
        server.wait_until_ready()

        assert acme.get_session(session.session_id).tenant == "acme"
        assert acme.get_session(session.session_id).block_count == 3
        with pytest.raises(RoleForbiddenError):
            globex.get_session(session.session_id)
        with pytest.raises(QuotaExceededError, match="may have 1 more"):
            session.allocate_blocks(2)
        assert len(session.allocate_blocks(1)) == 1


def _error_of(call: Callable[[], object]) -> StatepoolError | None:
    try:
        call()
    except StatepoolError as error:
        return error
    return None


def _is_refused(client: Client) -> bool:
    return isinstance(_error_of(client.get_pool), QuotaExceededError)


def _channel(server: Server, authority: Authority, token: str) -> grpc.Channel:
    credentials = grpc.composite_channel_credentials(
        authority.tls().credentials(), grpc.access_token_call_credentials(token_of(token))
    )
    return grpc.secure_channel(server.target, credentials)


def _never() -> Iterator[session_pb2.KeepAliveRequest]:
    """Sends nothing, and does not end."""
    threading.Event().wait(DEADLINE_SECONDS)
    yield from ()
