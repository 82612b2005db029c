"""Our calls against a bare gRPC echo of the same byte counts, on the same kind of socket in the same run."""

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import grpc

from benchmarks.turns import Operation, compare
from statepool import AsyncClient
from statepool.aio.session import AsyncSession
from statepool.v1 import session_pb2

BATCH = 256
UNARY, STREAM = "/bench.Echo/Unary", "/bench.Echo/Stream"
Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


async def serve_echo(address: str) -> None:
    """Serves an echo that answers each request with as many bytes as its first 8 bytes say."""

    async def unary(request: bytes, _context: object) -> bytes:
        return bytes(int.from_bytes(request[:8], "little"))

    async def stream(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            yield bytes(int.from_bytes(request[:8], "little"))

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    server.add_insecure_port(address)
    await server.start()
    print("ready", flush=True)
    await server.wait_for_termination()


async def measure(target: str, echo: str) -> list[Row]:
    """Measures our calls and the echo, in turns."""
    rows: list[Row] = []
    async with AsyncClient(target) as client, grpc.aio.insecure_channel(echo) as channel:
        unary: Unary = channel.unary_unary(UNARY)
        session = await client.create_session(60)

        async def against_echo(name: str, call: Operation, sizes: tuple[int, int]) -> None:
            request = sizes[1].to_bytes(8, "little").ljust(sizes[0], b"\0")
            measured = await compare(call, lambda: unary(request))
            rows.append((f"{name} / unary echo of {sizes[0]} + {sizes[1]} B", measured.ratio, "x", ""))
            rows.append((f"  {name}", measured.us, "us", ""))

        async def churn() -> None:
            await session.free_blocks(await session.allocate_blocks(BATCH, zero=False))

        refs = await session.allocate_blocks(BATCH, zero=False)
        await against_echo("get pool", client.get_pool, (8, 3000))
        await against_echo("retain 256 blocks", lambda: session.retain_blocks(refs), (3180, 16))
        await against_echo("lookup of 16 hashes, no hit", _lookup(session), (370, 16))
        measured = await compare(churn, lambda: _twice(unary))
        rows.append(("allocate + free 256 blocks / 2 echoes", measured.ratio, "x", ""))
        rows.append(("  allocate + free 256 blocks", measured.us, "us", ""))
        rows += await keep_alive(channel, target)
        await session.close()
    return rows


def _lookup(session: AsyncSession) -> Operation:
    hashes = [b"absent.%010d" % number for number in range(16)]
    return lambda: session.lookup_prefix(hashes)


async def _twice(unary: "Unary") -> None:
    await unary((3100).to_bytes(8, "little").ljust(100, b"\0"))
    await unary((16).to_bytes(8, "little").ljust(3180, b"\0"))


def echo_round(stream: "grpc.aio.StreamStreamCall[bytes, bytes]", sent: int, received: int) -> Operation:
    """Makes a round on an open stream that sends and receives as many bytes."""
    message = received.to_bytes(8, "little").ljust(sent, b"\0")

    async def round_of_echo() -> None:
        await stream.write(message)
        await stream.read()

    return round_of_echo


async def keep_alive(echo: grpc.aio.Channel, target: str) -> list[Row]:
    """Measures a round on an open stream: renewing one session, and echoing as many bytes."""
    bare: grpc.aio.StreamStreamCall[bytes, bytes] = echo.stream_stream(STREAM)()
    async with grpc.aio.insecure_channel(target) as channel:
        stream = channel.stream_stream(
            "/statepool.v1.SessionService/KeepAlive",
            request_serializer=session_pb2.KeepAliveRequest.SerializeToString,
            response_deserializer=session_pb2.KeepAliveResponse.FromString,
        )()
        request = session_pb2.KeepAliveRequest()
        request.sessions.add(session_id=1, epoch=1, incarnation=1)

        async def round_of_keep_alive() -> None:
            await stream.write(request)
            await stream.read()

        measured = await compare(round_of_keep_alive, echo_round(bare, 32, 30))
        stream.cancel()
    bare.cancel()
    return [
        ("keep-alive on a stream / stream echo", measured.ratio, "x", ""),
        ("  echo on a stream", measured.floor_us, "us", ""),
    ]


def rows() -> list[Row]:
    """Starts both servers and measures."""
    with tempfile.TemporaryDirectory() as folder:
        sockets = [f"unix:{Path(folder) / name}.sock" for name in ("ours", "echo")]
        program = Path(sys.executable).with_name("statepool-server")
        sizes = ["--model-config", "lfm2", "--tp-size", "8", "--blocks", "1025", "--log-level", "warning"]
        ours = subprocess.Popen([program, *sizes, "--listen", sockets[0], "--state-dir", f"{folder}/state"])
        echo = subprocess.Popen([sys.executable, __file__, sockets[1]], stdout=subprocess.DEVNULL)
        try:
            for socket in sockets:
                with grpc.insecure_channel(socket) as channel:
                    grpc.channel_ready_future(channel).result(timeout=60)
            return asyncio.run(measure(*sockets))
        finally:
            for process in (ours, echo):
                process.terminate()
                process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(serve_echo(sys.argv[1]))
    for name, value, unit, bar in rows():
        print(f"{name:52} {value:8.2f} {unit:6} {bar}")
