"""Guarantee: only a process of the server's own user with a fresh token gets the memory; others do no harm."""

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from service.proxy import between
from service.servers import DEADLINE_SECONDS, Server, Servers, until
from statepool import (
    AttachmentNotFoundError,
    AttachOffer,
    BadFieldError,
    Client,
    LayoutMismatchError,
    OverloadedError,
    PeerUntrustedError,
    QuotaExceededError,
    StatepoolError,
    UnavailableError,
)
from statepool.attachment import ArenaAttachment
from statepool.framing import frame
from statepool.greeting import greet
from statepool.status import error_from_wire
from statepool.torch import attach
from statepool.v1 import attach_pb2 as pb
from statepool_server.service.attach_listener import MAX_HANDSHAKES

NOBODY = 65534


def take_up(client: Client, offer: AttachOffer) -> ArenaAttachment:
    """Attaches with a token."""
    nbytes = client.get_pool().layout.nbytes
    return ArenaAttachment(
        offer.socket_path, offer.token, nbytes=nbytes, read_only=False, timeout=30.0, reattach_within=0.0
    )


@contextlib.contextmanager
def raw(offer: AttachOffer) -> Iterator[socket.socket]:
    """Connects to the attach socket without the client library."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(30.0)
        stream.connect(offer.socket_path)
        yield stream


def refusal(stream: socket.socket) -> StatepoolError:
    """Reads a refusal and the end of the connection."""
    data = b""
    while received := stream.recv(4096):
        data += received
    message = pb.ServerFrame.FromString(data[4:])
    assert message.HasField("refused")
    return error_from_wire(message.refused.error)


def hello(token: bytes) -> bytes:
    """Writes the first frame."""
    return frame(pb.WorkerFrame(hello=pb.Hello(token=token)))


def test_a_token_is_good_once(client: Client) -> None:
    """Used up by the first who presents it; one that was never given out is as good as none."""
    offer = client.attach_pool()
    attached = take_up(client, offer)

    for token in (offer.token, os.urandom(16), b""):
        with raw(offer) as stream:
            stream.sendall(hello(token))
            assert isinstance(refusal(stream), PeerUntrustedError)

    assert len(client.list_attachments()) == 1
    assert attached.detach()
    assert client.list_attachments() == []
    with pytest.raises(AttachmentNotFoundError):
        client.detach_pool(attached.attachment_id, attached.token)


def test_detaching_whose_answer_is_lost(server: Server, client: Client, tmp_path: Path) -> None:
    """It is sent again and has succeeded."""
    attached = take_up(client, client.attach_pool())
    with between(tmp_path, server.socket) as proxy, Client(proxy.target, timeout=DEADLINE_SECONDS) as cut_off:
        assert len(cut_off.list_attachments()) == 1

        with proxy.losing_answers(lambda: client.list_attachments() == []):
            assert cut_off.detach_pool(attached.attachment_id, attached.token) == 0
    assert not attached.detach()


def test_a_token_grows_old(servers: Servers) -> None:
    """One that is not used in time admits nobody."""
    server = servers.shared("--attach-timeout", "50ms")
    with server.client() as client:
        offer = client.attach_pool()
        with raw(offer) as stream:
            late = refusal(stream)  # nothing was sent: the connection lasts as long as the token
        with pytest.raises(PeerUntrustedError):
            take_up(client, offer)

    assert isinstance(late, PeerUntrustedError)
    assert offer.token_ttl == 0.05


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user(server: Server, client: Client) -> None:
    """A process of another user is refused whatever token it has, even where the file system lets it connect."""
    offer = client.attach_pool()
    folders = [Path(offer.socket_path), *list(Path(offer.socket_path).parents)[:2]]
    modes = [path.stat().st_mode & 0o7777 for path in folders]
    program = f"""
import contextlib, os, socket, sys
os.setuid({NOBODY})
stream = socket.socket(socket.AF_UNIX)
stream.connect({offer.socket_path!r})
with contextlib.suppress(BrokenPipeError):  # refused already
    stream.sendall({hello(offer.token)!r})
sys.stdout.buffer.write(stream.recv(4096))
"""
    try:
        for path in folders:
            path.chmod(0o777)
        answer = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    finally:
        for path, mode in zip(folders, modes, strict=True):
            path.chmod(mode)

    error = error_from_wire(pb.ServerFrame.FromString(answer[4:]).refused.error)
    assert isinstance(error, PeerUntrustedError)
    assert str(NOBODY) in error.message
    assert client.list_attachments() == []


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x05",
        struct.pack("<I", 2**32 - 1),
        struct.pack("<I", 3) + b"\xff\xff\xff",
        frame(pb.WorkerFrame(quiesced=pb.Quiesced(number=1))),
        hello(bytes(16))[:-1],
    ],
)
def test_half_a_handshake(client: Client, sent: bytes) -> None:
    """A connection that ends before its token is complete, or that speaks something else, is refused."""
    offer = client.attach_pool()
    with raw(offer) as stream:
        stream.sendall(sent)
        stream.shutdown(socket.SHUT_WR)
        error = refusal(stream)

    assert isinstance(error, PeerUntrustedError)
    assert take_up(client, offer).detach()


def test_nonsense_from_an_attached_process(client: Client) -> None:
    """One that answers a fence that never was, or says hello again, loses its connection, but stays attached."""
    for sent in (frame(pb.WorkerFrame(quiesced=pb.Quiesced(number=99))), hello(b""), b"\xff\xff\xff\xff"):
        attached = take_up(client, client.attach_pool())
        attached._stream.sendall(sent)  # noqa: SLF001 — no good worker does this, so there is no method
        until(lambda: attached.error is not None, "the end of the connection")  # noqa: B023

        assert [row.is_connected for row in client.list_attachments()] == [False]
        assert not attached.detach()
        with pytest.raises(PeerUntrustedError):
            client.detach_pool(attached.attachment_id, os.urandom(16))
        client.detach_pool(attached.attachment_id, attached.token)
        assert client.list_attachments() == []


def test_who_gives_up_has_nothing(client: Client) -> None:
    """A process that was attached, but cannot use it, or has waited long enough, is not attached."""
    offer = client.attach_pool()
    with pytest.raises(LayoutMismatchError):
        ArenaAttachment(offer.socket_path, offer.token, nbytes=1, read_only=False, timeout=30.0)
    offer = client.attach_pool()
    with raw(offer) as stream:
        stream.sendall(hello(offer.token) + frame(pb.WorkerFrame(detach=pb.Detach())))

    until(lambda: client.list_attachments() == [], "the end of both")


def test_many_who_say_nothing(client: Client) -> None:
    """Connections without a token are bounded: one more is refused at once, and the others do no harm."""
    offer = client.attach_pool()
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_HANDSHAKES):
            stack.enter_context(raw(offer))
        with raw(offer) as stream:
            error = refusal(stream)
        assert client.get_pool().usage.sessions == 0

    assert isinstance(error, OverloadedError)
    assert error.retry_after is not None
    until(lambda: _is_attached(client, offer), "room for a handshake")


def _is_attached(client: Client, offer: AttachOffer) -> bool:
    try:
        take_up(client, offer).detach()
    except OverloadedError:
        return False
    return True


def test_too_many(servers: Servers) -> None:
    """Tokens and attachments together are bounded; room comes back with the end of an attachment."""
    server = servers.shared("--max-attachments", "2")
    with server.client() as client:
        attached = take_up(client, client.attach_pool())
        client.attach_pool()

        with pytest.raises(QuotaExceededError) as refused:
            client.attach_pool()
        attached.detach()
        client.attach_pool()

    assert refused.value.metadata["limit"] == "2"


def test_layouts_that_do_not_fit(client: Client) -> None:
    """Another fingerprint, a kernel that cannot reach every element, and a rank that is not here are named."""
    fingerprint = client.get_pool().layout.block.fingerprint
    reach = max(tensor.max_element_offset for tensor in client.get_pool().layout.tensors)

    with pytest.raises(LayoutMismatchError, match=fingerprint):
        attach(client, layout_fingerprint="0" * 64)
    with pytest.raises(LayoutMismatchError, match=f"{reach} .* {reach - 1}") as refused:
        attach(client, max_element_offset=reach - 1)
    with pytest.raises(BadFieldError) as bad:
        attach(client, rank_index=2)
    attach(client, layout_fingerprint=fingerprint, max_element_offset=reach).close()

    assert refused.value.field == "max_element_offset"
    assert bad.value.field == "rank_index"


def test_a_welcome_that_makes_no_sense(tmp_path: Path) -> None:
    """Whoever answers with columns that do not fit is no server of ours, and the descriptors that came are closed."""
    path = str(tmp_path / "s.sock")
    with socket.socket(socket.AF_UNIX) as listener, (tmp_path / "arena").open("wb") as arena:
        listener.bind(path)
        listener.listen()

        def welcome() -> None:
            answer = frame(pb.ServerFrame(attached=pb.Attached(session_ids=[1], arena_bytes=1)))
            with listener.accept()[0] as stream:
                socket.send_fds(stream, [answer], [arena.fileno()] * 2)
                while stream.recv(4096):
                    continue

        before = psutil.Process().num_fds()
        server = threading.Thread(target=welcome)
        server.start()
        with pytest.raises(PeerUntrustedError, match="does not speak"):
            greet(path, pb.Hello(token=bytes(16)), DEADLINE_SECONDS)
        server.join(DEADLINE_SECONDS)
        assert psutil.Process().num_fds() == before


def test_no_descriptors_left(lone: Server) -> None:
    """A server out of descriptors refuses, or lets wait, and attaches again as soon as it has some."""
    with lone.client() as client:
        offer, pid = client.attach_pool(), lone.process.pid
        client.list_attachments()
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        try:
            used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            for left in (0, 1, 3, 4):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + left, hard))
                with contextlib.suppress(StatepoolError):
                    attempt = ArenaAttachment(
                        offer.socket_path, client.attach_pool().token, nbytes=1, read_only=False, timeout=0.2
                    )
                    attempt.detach()
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: client.list_attachments() == [], "the end of those who gave up")

        assert take_up(client, client.attach_pool()).detach()
        assert client.list_attachments() == []
        until(lambda: len(list(Path(f"/proc/{pid}/fd").iterdir())) <= used, "every descriptor to be given back")


def test_dead_server(lone: Server) -> None:
    """Nobody answers at the socket of a server that is gone, and a file in its place is none either."""
    with lone.client() as client:
        offer = client.attach_pool()
    lone.process.kill()
    lone.wait()

    for _ in range(2):
        with pytest.raises(UnavailableError, match="attach socket"):
            ArenaAttachment(offer.socket_path, offer.token, nbytes=1, read_only=False, timeout=5.0)
        Path(offer.socket_path).unlink()
        Path(offer.socket_path).touch()


def test_the_socket_is_where_clients_find_it(servers: Servers) -> None:
    """Beside the first Unix socket; without one, in the state folder; gone with the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = servers.start("--insecure-loopback", "", listen=f"127.0.0.1:{port}").wait_until_ready()
    with server.client() as client:
        assert take_up(client, client.attach_pool()).detach()
        path = Path(client.attach_pool().socket_path)
    server.stop()

    assert path == server.state_dir / "attach.sock"
    assert not path.exists()
