"""Guarantee: every call is for certain roles, and who calls is known by certificate, token, or a socket's rights."""

import hashlib
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from security.authority import Authority, dns, uri
from security.conftest import TOKENS, access_file, client_of, token_of
from service.raw import Stubs, refusal_of
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import AsyncClient, Client, PeerUntrustedError, RoleForbiddenError, StatepoolError, Tls
from statepool.channel import error_of_rpc
from statepool.v1 import admin_pb2, pool_pb2
from statepool_server.access.rules import Role
from statepool_server.assembly import DESCRIPTORS
from statepool_server.service.policies import POLICIES

CHANNELZ = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
METHODS = [method for service in (*DESCRIPTORS.values(), CHANNELZ) for method in service.methods]
FORBIDDEN = "PERMISSION_DENIED"


def call(channel: grpc.Channel, method: MethodDescriptor) -> StatepoolError | None:
    """Calls a method with an empty request, and returns its error; None: it was answered, or waits for more to come."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    method_of: Any = channel.stream_stream(path)
    stream = method_of(iter([b""]), timeout=DEADLINE_SECONDS)
    try:
        next(stream, None)
    except grpc.RpcError as error:
        return error_of_rpc(error)
    stream.cancel()  # a watch would last
    return None


def channel_of(target: str, tls: Tls) -> grpc.Channel:
    """Opens a channel without the client library."""
    return grpc.secure_channel(target, tls.credentials())


def test_every_method_has_a_policy() -> None:
    """The table has each method of each service that is served, and nothing else; each is for somebody."""
    served = {service.full_name: {m.name for m in service.methods} for service in (*DESCRIPTORS.values(), CHANNELZ)}

    assert {service: set(methods) for service, methods in POLICIES.items()} == served
    assert all(policy.roles for methods in POLICIES.values() for policy in methods.values())


@pytest.mark.parametrize("role", Role)
def test_role_may_call_what_the_table_says(secured: Server, authority: Authority, role: Role) -> None:
    """For each role and method, the server lets in whom the table lets in, and nobody else."""
    with channel_of(secured.target, authority.tls_as(role)) as channel:
        for method in METHODS:
            allowed = POLICIES[method.containing_service.full_name][method.name].roles - {Role.ADMIN}
            error = call(channel, method)
            assert (error is not None and error.code.name == FORBIDDEN) == (role not in allowed), (method.name, error)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_nobody_may_call_anything(secured: Server, authority: Authority, method: MethodDescriptor) -> None:
    """A certificate of the authority that says nothing of statepool gives nothing at all."""
    with channel_of(secured.target, authority.tls(dns("worker.example"), uri("https://example.test/admin"))) as channel:
        assert isinstance(call(channel, method), PeerUntrustedError)


def test_health_answers_everybody(secured: Server, authority: Authority) -> None:
    """Probes need no role."""
    with channel_of(secured.target, authority.tls()) as channel:
        answer: Any = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_operators_have_a_listener_of_their_own(secured: Server, admin_target: str, authority: Authority) -> None:
    """What needs the role admin is served where operators call, who can do nothing else there, and nowhere else."""
    tls = authority.tls_as("admin", "scheduler")
    with channel_of(secured.target, tls) as everywhere, channel_of(admin_target, tls) as here:
        refused = refusal_of(lambda: Stubs(everywhere).admin.ReleaseQuarantine(admin_pb2.ReleaseQuarantineRequest()))
        assert isinstance(refused, RoleForbiddenError)
        assert "ReleaseQuarantine is for admin at the addresses of --admin-listen, and " in refused.message
        assert Stubs(here).admin.ReleaseQuarantine(admin_pb2.ReleaseQuarantineRequest()).cleared_blocks == 0
        for method in METHODS:
            policy = POLICIES[method.containing_service.full_name][method.name]
            if not policy.roles & {Role.ADMIN, Role.OBSERVER}:
                elsewhere = call(here, method)
                assert isinstance(elsewhere, RoleForbiddenError), method.name
                assert "at the addresses of --listen, and " in elsewhere.message


def test_channelz_on_the_listener_for_operators(admin_target: str, authority: Authority) -> None:
    """Channelz answers, and says so where something does not exist."""
    with channel_of(admin_target, authority.tls_as("observer")) as channel:
        stub: Any = channelz_pb2_grpc.ChannelzStub(channel)
        assert len(stub.GetServers(channelz_pb2.GetServersRequest()).server) >= 2
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetServer(channelz_pb2.GetServerRequest(server_id=2**40))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


NAMES: dict[str, tuple[list[Any], str | None]] = {
    "uri": ([uri("spiffe://cluster.test/statepool/observer")], None),
    "dns name": ([dns("observer.statepool.example")], None),
    "several roles": ([uri("spiffe://c/statepool/worker"), dns("observer.statepool.example")], None),
    "other names beside": ([dns("host.example"), uri("spiffe://c/other/admin"), dns("observer.statepool.x")], None),
    "of a tenant": ([uri("spiffe://c/statepool/acme/observer")], "acts for acme only"),
    "of a tenant by dns": ([dns("observer.acme.statepool.example")], "acts for acme only"),
    "of an unknown tenant": ([uri("spiffe://c/statepool/initech/observer")], "no tenant 'initech'"),
    "of two tenants": ([uri("spiffe://c/statepool/acme/observer"), dns("observer.globex.statepool.x")], "says who"),
    "of one and of all": ([uri("spiffe://c/statepool/acme/observer"), dns("observer.statepool.x")], "says who"),
    "no such role": ([uri("spiffe://c/statepool/root")], "says who"),
    "another scheme": ([uri("https://c/statepool/observer")], "says who"),
    "no domain": ([uri("spiffe:///statepool/observer")], "says who"),
    "deeper": ([uri("spiffe://c/x/statepool/observer")], "says who"),
    "a uri as a dns name": ([dns("spiffe://c/statepool/observer")], "says who"),
    "not the first label": ([dns("x.y.observer.statepool.example")], "says who"),
    "top level": ([dns("observer.statepool")], "says who"),
    "none": ([], "says who"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_in_certificates(secured: Server, authority: Authority, name: str) -> None:
    """A certificate gives roles by SPIFFE URIs and host names, all for one tenant or all for all; nothing else does."""
    names, words = NAMES[name]
    with Client(secured.target, tls=authority.tls(*names), timeout=DEADLINE_SECONDS) as client:
        if words is None:
            assert list(client.list_attachments()) == []
        else:
            with pytest.raises((PeerUntrustedError, RoleForbiddenError), match=words):
                list(client.list_attachments())


def test_token_goes_before_the_certificate(secured: Server, authority: Authority) -> None:
    """Who shows a token is whom the token says: its certificate gives nothing beside."""
    with Client(secured.target, tls=authority.tls_as("observer"), token=token_of("everybody")) as client:
        with client.create_session(60.0):
            pass
        with pytest.raises(RoleForbiddenError):
            client.attach_pool()


@pytest.mark.parametrize("header", ["Bearer wrong", "Bearer ", f"Bearer {token_of('acme')}x", "Basic YTpi", "Bearer"])
def test_bad_token(secured: Server, authority: Authority, header: str) -> None:
    """A token that is not known is refused, whoever the certificate says it is, and stands in no log."""
    with channel_of(secured.target, authority.tls_as("observer")) as channel:
        request = pool_pb2.GetPoolRequest()
        error = refusal_of(lambda: Stubs(channel).pool.GetPool(request, metadata=(("authorization", header),)))

    assert isinstance(error, PeerUntrustedError)
    assert "wrong" not in str(error)


async def test_errors_of_the_async_client(secured: Server, authority: Authority) -> None:
    """The async client raises the same."""
    async with AsyncClient(secured.target, tls=authority.tls_as("observer")) as client:
        with pytest.raises(RoleForbiddenError):
            await client.create_session(60.0)
    async with AsyncClient(secured.target, tls=authority.tls(), token="wrong") as client:
        with pytest.raises(PeerUntrustedError):
            await client.get_pool()


def test_no_token_in_logs(secured: Server, authority: Authority) -> None:
    """No token, and no hash of one, stands in the log, not at its finest level either."""
    for name in TOKENS:
        with client_of(secured, authority, name) as client, suppress(RoleForbiddenError):
            client.get_pool()

    assert not [name for name in TOKENS if token_of(name) in secured.log]
    assert "sha256" not in secured.log


@pytest.fixture
def guarded(servers: Servers, tmp_path: Path) -> Server:
    """Starts a server on a Unix socket that wants a token."""
    return servers.start("--access", str(access_file(tmp_path)), "--local-roles", "none").wait_until_ready()


def test_token_over_a_unix_socket(guarded: Server) -> None:
    """Where local callers have no roles, a token is needed, and is enough."""
    with Client(guarded.target) as client, pytest.raises(PeerUntrustedError, match="must show a token"):
        client.get_pool()
    with Client(guarded.target, token=token_of("everybody")) as client, client.create_session(60.0) as session:
        assert len(session.allocate_blocks(1)) == 1


def test_local_roles(servers: Servers) -> None:
    """Who comes by a Unix socket has the roles that the operator has left to local callers."""
    server = servers.start("--local-roles", "observer,worker").wait_until_ready()
    with server.client() as client:
        assert client.attach_pool().token
        with pytest.raises(RoleForbiddenError, match="is for scheduler here"):
            client.create_session(60.0)


def test_revoked_token(guarded: Server) -> None:
    """A token that is taken out of the file is not known any more, at the next call of a connection that is open."""
    access = Path(guarded.flag("--access"))
    with Client(guarded.target, token=token_of("acme")) as client:
        client.get_pool()
        access.write_text("[tenants.acme]\n", encoding="utf-8")

        def is_refused() -> bool:
            try:
                client.get_pool()
            except PeerUntrustedError:
                return True
            return False

        until(is_refused, "the token to be forgotten")


STRANGER = (("authorization", f"Bearer {token_of('stranger')}"),)
STREAMS: dict[str, Callable[[Stubs, Any], Any]] = {
    "KeepAlive": lambda stubs, sent: stubs.sessions.KeepAlive(sent, metadata=STRANGER),
    "Schedule": lambda stubs, sent: stubs.sequences.Schedule(sent, metadata=STRANGER),
    "WatchBlocks": lambda stubs, _sent: stubs.pool.WatchBlocks(pool_pb2.WatchBlocksRequest(), metadata=STRANGER),
}
REVOKED = {
    "gone": ("", "PEER_UNTRUSTED"),
    "another role": ('roles = ["admin"]', "ROLE_FORBIDDEN"),
    "another tenant": ('roles = ["scheduler"]\ntenant = "acme"', "PEER_UNTRUSTED"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REVOKED)
@pytest.mark.parametrize("method", ["KeepAlive", "Schedule"])
def test_revoked_token_of_a_stream(servers: Servers, tmp_path: Path, method: str, case: str) -> None:
    """A stream ends, with the reason, when its caller may not go on; those of other callers stay open."""
    access, over = access_file(tmp_path), threading.Event()
    others, (rights, reason) = access.read_text(encoding="utf-8"), REVOKED[case]
    access.write_text(others + entry_of("stranger", 'roles = ["scheduler"]'), encoding="utf-8")
    server = servers.start("--access", str(access), "--local-roles", "none").wait_until_ready()
    with (
        Client(server.target, token=token_of("everybody")) as client,
        client.create_session(60.0) as session,
        session.scheduler() as scheduler,
        grpc.insecure_channel(server.target) as channel,
    ):
        scheduler.step()
        stream = STREAMS[method](Stubs(channel), iter(over.wait, True))
        until(lambda: streams(server) == 3, "the stream to be open")
        access.write_text(others + (entry_of("stranger", rights) if rights else ""), encoding="utf-8")

        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        over.set()
        assert error_of_rpc(caught.value).reason == reason
        scheduler.step()
    assert server.log.count("stream ended") == 1


def test_revoked_token_of_a_watcher(servers: Servers, tmp_path: Path) -> None:
    """Who only listens is told nothing more either."""
    access = access_file(tmp_path)
    others = access.read_text(encoding="utf-8")
    access.write_text(others + entry_of("stranger", 'roles = ["observer"]'), encoding="utf-8")
    server = servers.start("--access", str(access), "--local-roles", "none").wait_until_ready()
    with grpc.insecure_channel(server.target) as channel:
        stream = STREAMS["WatchBlocks"](Stubs(channel), None)
        assert next(stream).changes
        access.write_text(others, encoding="utf-8")

        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert error_of_rpc(caught.value).reason == "PEER_UNTRUSTED"


def entry_of(name: str, rights: str) -> str:
    """Writes what an access file says of a token."""
    digest = hashlib.sha256(token_of(name).encode()).hexdigest()
    return f'\n[[tokens]]\nname = "{name}"\n{rights}\nsha256 = "{digest}"\n'


def streams(server: Server) -> int:
    """Counts the streams that are open, as an operator sees them."""
    with Client(server.target, token=token_of("operator")) as operator:
        return int(operator.get_metrics().total("statepool_current_rpcs", kind="stream"))


@pytest.mark.parametrize(("access", "mode"), [("user", 0o600), ("group", 0o660)])
def test_rights_of_sockets(servers: Servers, access: str, mode: int, tmp_path: Path) -> None:
    """A socket is the server's user's alone unless its group is let in, which operators' sockets never do."""
    admin = tmp_path / "admin.sock"
    server = servers.start("--socket-access", access, "--admin-listen", f"unix:{admin}").wait_until_ready()

    assert stat.S_IMODE(server.socket.stat().st_mode) == mode
    assert stat.S_IMODE(admin.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.socket.with_name("s.sock.attach").stat().st_mode) == 0o600
