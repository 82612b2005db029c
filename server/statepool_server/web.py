"""A small HTTP server for scrapers and browsers: it answers GET from the event loop."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeAlias

import h11

MAX_HEAD_BYTES = 16 * 1024
"""Of a request's line and headers."""
MAX_CONNECTIONS = 32
"""More are closed as they come: a handful of scrapers and browsers is usual."""
PATIENCE_SECONDS = 75.0
"""How long a connection may stand still, in the middle of a request or between two: scrapers come every minute."""
HANDSHAKE_SECONDS = 5.0
"""How long a peer may take for TLS, before it counts as a connection."""

CONTENT_POLICY = "default-src 'self'; frame-ancestors 'none'"
"""What a browser may load for a page: its own files, and nothing from elsewhere."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer with a body."""

    body: bytes
    """The body."""
    content_type: str
    """Its type."""


Route: TypeAlias = Callable[[str], Page]
"""Makes a page for a client with this Accept header."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks, as far as a connection and a request tell."""

    names: tuple[tuple[str, str], ...]
    """Alternative names of its certificate, each after its kind: ``("DNS", "a.example")``; none without TLS."""
    authorization: str | None = field(repr=False)
    """Header of the request, which may hold a secret; None: it has none."""


Guard: TypeAlias = Callable[[Visitor], HTTPStatus]
"""Tells how a visitor is answered: OK, or why not."""


def open_to_all(_visitor: Visitor) -> HTTPStatus:
    """Lets everybody in."""
    return HTTPStatus.OK


def parse_http_address(text: str) -> tuple[str, int]:
    """Reads ``HOST:PORT``; an IPv6 host stands in brackets.

    Raises:
        ValueError: It is none.
    """
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 2**16):
        raise ValueError(f"metrics-listen {text!r}: not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class WebServer:
    """Serves a few pages."""

    def __init__(self, routes: Mapping[str, Route], guard: Guard = open_to_all) -> None:
        """Begins without listening.

        Args:
            routes: What makes the page of each path.
            guard: Tells who may have them.
        """
        self._routes = routes
        self._guard = guard
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Begins to serve.

        Args:
            host: Address to bind.
            port: Its port; 0: any.
            tls: Makes it HTTPS.

        Raises:
            ValueError: The address cannot be bound.
        """
        try:
            patience = None if tls is None else HANDSHAKE_SECONDS
            self._server = await asyncio.start_server(
                self._connected, host, port, ssl=tls, ssl_handshake_timeout=patience
            )
        except OSError as error:
            raise ValueError(f"metrics-listen {host}:{port}: cannot be bound: {error}") from error

    @property
    def port(self) -> int | None:
        """The port that it listens on; None: it does not."""
        return None if self._server is None else int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Ends all connections; nothing if it never listened."""
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError):  # the peer's end, or ours
                await _Connection(self._routes, self._guard, reader, writer).run()
        finally:
            self._connections.discard(task)
            writer.close()


class _Connection:
    """Requests of one peer, one after the other."""

    def __init__(
        self, routes: Mapping[str, Route], guard: Guard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._routes = routes
        self._guard = guard
        self._names = (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    async def run(self) -> None:
        """Answers requests until either side ends the connection."""
        try:
            while isinstance(request := await self._next(), h11.Request):
                while not isinstance(await self._next(), h11.EndOfMessage):  # a body says nothing to us
                    pass
                await self._answer(request)
                if self._http.our_state is not h11.DONE:
                    return
                self._http.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                await self._send(error.error_status_hint, b"")

    async def _next(self) -> h11.Event:
        while not isinstance(event := self._http.next_event(), h11.Event):  # it needs data; nothing is ever paused
            async with asyncio.timeout(PATIENCE_SECONDS):
                self._http.receive_data(await self._reader.read(MAX_HEAD_BYTES))
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError
        return event

    async def _answer(self, request: h11.Request) -> None:
        headers = dict(request.headers)
        route = self._routes.get(request.target.partition(b"?")[0].decode("ascii", "replace"))
        sent = headers.get(b"authorization")
        status = self._guard(Visitor(self._names, None if sent is None else sent.decode("latin-1")))
        if status is not HTTPStatus.OK:
            await self._send(status, b"", ("WWW-Authenticate", "Bearer"))
        elif request.method not in (b"GET", b"HEAD"):
            await self._send(405, b"", ("Allow", "GET, HEAD"))
        elif route is None:
            await self._send(404, b"")
        else:
            page = route(headers.get(b"accept", b"").decode("latin-1"))
            body = b"" if request.method == b"HEAD" else page.body
            await self._send(200, body, ("Content-Type", page.content_type), length=len(page.body))

    async def _send(self, status: int, body: bytes, *headers: tuple[str, str], length: int | None = None) -> None:
        head = h11.Response(
            status_code=status,
            headers=[
                *headers,
                ("Content-Length", str(len(body) if length is None else length)),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("Content-Security-Policy", CONTENT_POLICY),
            ],
        )
        data = (self._http.send(head), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in data if part))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._writer.drain()
