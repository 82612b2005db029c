"""Guarantee: the HTTP listener answers what it knows, refuses the rest, and is bounded in all that peers may do."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from statepool_server import web
from statepool_server.web import Page, WebServer, parse_http_address

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
async def server() -> AsyncIterator[WebServer]:
    """Serves one page, which tells what the client accepts."""
    server = WebServer({"/metrics": lambda accept: Page(f"<{accept}>".encode(), "text/plain")})
    await server.listen("127.0.0.1", 0)
    yield server
    await server.close()


async def ask(server: WebServer, request: bytes) -> bytes:
    """Sends bytes, and returns everything that comes until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_page(server: WebServer) -> None:
    """A page comes with its type and length; the query does not matter."""
    request = b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\nAccept: a/b\r\nConnection: close\r\n\r\n"
    head, _, body = (await ask(server, request)).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-type: text/plain" in head.lower()
    assert body == b"<a/b>"


async def test_one_after_the_other(server: WebServer) -> None:
    """A connection is kept, also when requests come before they are answered, and when they have a body."""
    answer = await ask(server, GET + b"\r\n" + GET + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n")

    assert answer.count(b"HTTP/1.1 200") == answer.count(b"<>") == 3


async def test_head(server: WebServer) -> None:
    """HEAD tells the length, and sends nothing."""
    answer = await ask(server, b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")

    assert b"content-length: 2" in answer.lower()
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx", b"405"),
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"400"),  # no host
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),  # TLS
        (GET + b"X: " + b"y" * 4 * web.MAX_HEAD_BYTES + b"\r\n\r\n", b"431"),
    ],
)
async def test_refusals(server: WebServer, request_: bytes, status: bytes) -> None:
    """What is not known, not allowed, malformed or too long is refused with its status."""
    assert (await ask(server, request_)).startswith(b"HTTP/1.1 " + status)


async def test_peers_that_stand_still(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that says nothing, or half a request, is ended after a while."""
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 0.05)
    for beginning in (b"", GET):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(beginning)

        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()


async def test_too_many_peers(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection more than may be is closed at once, and the others are not."""
    monkeypatch.setattr(web, "MAX_CONNECTIONS", 1)
    first, writing = await asyncio.open_connection("127.0.0.1", server.port)
    writing.write(GET + b"\r\n")
    assert (await first.readline()).startswith(b"HTTP/1.1 200")

    assert await ask(server, b"") == b""

    writing.write(GET + b"Connection: close\r\n\r\n")
    assert (await asyncio.wait_for(first.read(), 30)).count(b"HTTP/1.1 200") == 1
    writing.close()


async def test_taken(server: WebServer) -> None:
    """An address that is in use is an error that names it."""
    with pytest.raises(ValueError, match=rf"metrics-listen 127.0.0.1:{server.port}: cannot be bound"):
        await WebServer({}).listen("127.0.0.1", server.port or 0)


@pytest.mark.parametrize("text", ["", "9464", ":9464", "localhost:", "localhost:x", "localhost:70000"])
def test_addresses(text: str) -> None:
    """What is no address is refused."""
    with pytest.raises(ValueError, match="not HOST:PORT"):
        parse_http_address(text)


def test_ipv6() -> None:
    """Brackets of an IPv6 host are taken off."""
    assert parse_http_address("[::1]:9464") == ("::1", 9464)
