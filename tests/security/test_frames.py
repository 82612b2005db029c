"""Guarantee: bytes that are no HTTP/2, no message, or too many end their own connection or call, and nothing else."""

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from security.authority import Authority
from service.raw import Stubs, refusal_of
from service.servers import DEADLINE_SECONDS, Server
from statepool import BadFieldError, Client, ResourceExhaustedError
from statepool.v1 import pool_pb2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes, length: int | None = None) -> bytes:
    """Writes an HTTP/2 frame, its length told wrongly where one is given."""
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


DATA, HEADERS, PRIORITY, SETTINGS, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x2, 0x4, 0x8, 0x9
GREETING = PREFACE + frame(SETTINGS, 0, 0, b"")

MALFORMED = {
    "noise": os.urandom(4096),
    "http/1.1": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an endless line": b"A" * 2**20,
    "a frame beyond the largest": GREETING + frame(DATA, 0, 1, b"\0" * 64, length=2**24 - 1),
    "settings of an odd length": PREFACE + frame(SETTINGS, 0, 0, b"\0\0\0"),
    "data before headers": GREETING + frame(DATA, 0, 1, b"\0" * 64),
    "headers that are none": GREETING + frame(HEADERS, 0x5, 1, b"\xff" * 64),
    "headers that never end": GREETING + frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 0, 1, b"\x82" * 8192) * 64,
    "a window of nothing": GREETING + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\0"),
    "an even stream": GREETING + frame(HEADERS, 0x5, 2, b"\x82"),
    "priority of an odd length": GREETING + frame(PRIORITY, 0, 1, b"\0"),
}


@contextlib.contextmanager
def connected(server: Server, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """Opens a connection, over TLS or to a Unix socket."""
    if tls is None:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(DEADLINE_SECONDS)
            stream.connect(str(server.socket))
            yield stream
    else:
        host, _, port = server.target.rpartition(":")
        with (
            socket.create_connection((host, int(port)), DEADLINE_SECONDS) as plain,
            tls.wrap_socket(plain, server_hostname=host) as stream,
        ):
            yield stream


def is_ended(stream: socket.socket, sent: bytes) -> bool:
    """Sends bytes, and tells whether the server ends the connection."""
    try:
        stream.sendall(sent)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


@pytest.fixture
def context(authority: Authority) -> ssl.SSLContext:
    """Knows the server, and is known."""
    tls, context = authority.tls_as("scheduler"), ssl.create_default_context(cafile=str(authority.ca))
    context.load_cert_chain(Path(str(tls.cert)), Path(str(tls.key)))
    context.set_alpn_protocols(["h2"])
    return context


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_frames(name: str, secured: Server, scheduler: Client, context: ssl.SSLContext) -> None:
    """A connection with bytes that are no HTTP/2 is ended, and a session on another one does not notice."""
    with scheduler.create_session(60.0) as session:
        blocks = session.allocate_blocks(1)
        with connected(secured, context) as stream:
            assert is_ended(stream, MALFORMED[name])
        session.free_blocks(blocks)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_frames_on_a_unix_socket(name: str, server: Server, client: Client) -> None:
    """The same where there is no TLS."""
    with client.create_session(60.0) as session:
        with connected(server, None) as stream:
            assert is_ended(stream, MALFORMED[name])
        assert len(session.allocate_blocks(1)) == 1


def test_unfinished_handshakes(secured: Server, scheduler: Client) -> None:
    """Connections that begin TLS and go no further keep nobody from being served."""
    host, _, port = secured.target.rpartition(":")
    with contextlib.ExitStack() as stack:
        for sent in (b"", b"\x16", b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03") * 16:
            stack.enter_context(socket.create_connection((host, int(port)), DEADLINE_SECONDS)).sendall(sent)
        assert scheduler.get_pool().capacity


def test_oversized_messages_and_metadata(secured: Server, authority: Authority, scheduler: Client) -> None:
    """A message or metadata beyond the limit is refused, as is a message that is none; the connection goes on."""
    with grpc.secure_channel(secured.target, authority.tls_as("scheduler").credentials()) as channel:
        shapes: Any = channel.unary_unary("/statepool.v1.PoolService/CalculateStateShapes")
        stubs = Stubs(channel)
        most = scheduler.get_pool().limits.max_message_bytes
        assert isinstance(refusal_of(lambda: shapes(b"\0" * (most + 1))), ResourceExhaustedError)
        assert isinstance(refusal_of(lambda: shapes(b"\xff" * 64)), BadFieldError)
        large = (("authorization", "Bearer " + "x" * 64 * 1024),)
        error = refusal_of(lambda: stubs.pool.GetPool(pool_pb2.GetPoolRequest(), metadata=large))
        assert isinstance(error, ResourceExhaustedError)
        assert stubs.pool.GetPool(pool_pb2.GetPoolRequest()).pool.capacity
