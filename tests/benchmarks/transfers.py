"""Moves between two servers over gRPC and NIXL, beside a bare gRPC stream of the same chunks, bare NIXL and a memcpy.

All in turns of one run. Between processes of one machine NIXL copies, and gRPC has Unix sockets; "over TCP" both are
made to do as between machines.
"""

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import xxhash

from benchmarks.bare_nixl import BareNixl
from benchmarks.rpc_floor import Row
from security.authority import Authority, dns, uri
from security.conftest import free_port
from statepool import AsyncClient, AsyncSession, BlockRefs, Client
from statepool.disagg import move_async
from statepool.v1 import transfer_pb2 as pb
from statepool_server.heap import keep_freed_memory
from statepool_server.nixl_agent import nixl_package

CHUNK_BYTES = 2**20
BLOCKS = 64
"""Of 2 MiB and some: a transfer of 128 MiB."""
TURNS = 7
CONCURRENT = (1, 16, 64)
STREAM = "/bench.Chunks/Stream"
MODEL = ("--model-config", "falcon_h1", "--tp-size", "8", "--tp-ranks", "0", "--log-level", "warning")

Servers: TypeAlias = dict[str, tuple[tuple[str, ...], dict[str, str]]]
"""Flags and environment of each server."""
Bytes: TypeAlias = Callable[[], Awaitable[object]]
"""Moves the bytes of one turn."""

TCP = {"UCX_TLS": "tcp"}
"""Makes NIXL do between processes of one machine what it does between machines."""
_NIXL = ("--nixl-devices", "lo")
_GRPC = ("--data-path", "grpc")
_OVER_NIXL: Servers = {
    "source": (_NIXL, {}),
    "nixl": (_NIXL, {}),
    "tcp-source": (_NIXL, TCP),
    "tcp": (_NIXL, TCP),
}

GRPC, BARE_STREAM = "gRPC", "bare gRPC stream of the same chunks"
GRPC_OVER_TCP, PLAIN_OVER_TCP = "gRPC over TCP with TLS", "gRPC over TCP in plain text"
NIXL, NIXL_OVER_TCP = "NIXL", "NIXL over TCP"


async def serve_chunks(address: str) -> None:
    """Serves a stream of chunks with checksums, read from memory as the server's are, and of nothing else."""
    memory = np.random.default_rng(0).integers(0, 256, 64 * CHUNK_BYTES, np.uint8)

    async def stream(request: bytes, _context: object) -> AsyncIterator[bytes]:
        for offset in range(0, int.from_bytes(request, "little"), CHUNK_BYTES):
            at = offset % len(memory)
            data = memory[at : at + CHUNK_BYTES].tobytes()
            checksum = xxhash.xxh3_64_intdigest(data)
            yield pb.PullBlocksResponse(offset=offset, data=data, checksum=checksum).SerializeToString()

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server = grpc.aio.server(options=[("grpc.max_send_message_length", 2 * CHUNK_BYTES)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Chunks", handlers),))
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


class Pair:
    """Sessions at two servers, and blocks that move from the one to the other again and again."""

    def __init__(self, lender: AsyncSession, taker: AsyncSession, blocks: BlockRefs, source: str) -> None:
        self.lender = lender
        self.taker = taker
        self.blocks = blocks
        self._source = source

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, source: str, destination: str, between: str = "") -> AsyncIterator["Pair"]:
        """Connects to both.

        Args:
            source: Address of the server that lends.
            destination: Address of the server that receives.
            between: Where the destination reaches the source; empty: at the same address.
        """
        async with (
            AsyncClient(source, timeout=60) as here,
            AsyncClient(destination, timeout=60) as there,
            await here.create_session(60) as lender,
            await there.create_session(60) as taker,
        ):
            yield cls(lender, taker, await lender.allocate_blocks(BLOCKS), between or source)

    async def move(self) -> None:
        """Moves all blocks."""
        transfer = await self.lender.create_transfer(self.blocks)
        received = await self.taker.receive_transfer(transfer, source=self._source)
        await self.taker.free_blocks(received.blocks)


class BareStream:
    """Reads a stream of `serve_chunks`, checks it and keeps it, as a server that receives must."""

    def __init__(self, channel: grpc.aio.Channel, into: np.ndarray) -> None:
        self._channel = channel
        self._into = into

    async def read(self) -> None:
        """Reads as much as there is room."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(STREAM)
        at, nbytes = 0, self._into.nbytes
        async for message in method(nbytes.to_bytes(8, "little")):
            chunk = pb.PullBlocksResponse.FromString(message)
            if xxhash.xxh3_64_intdigest(chunk.data) != chunk.checksum:
                raise AssertionError("wrong bytes")
            data = np.frombuffer(chunk.data, np.uint8)[: nbytes - at]
            self._into[at : at + len(data)] = data
            at += len(data)


async def measure(sockets: Mapping[str, str], between: Mapping[str, str], block_bytes: int) -> list[Row]:
    """Measures everything, in turns.

    Args:
        sockets: Where this program reaches each server.
        between: Where other servers reach those that lend over TCP.
        block_bytes: Bytes of a block.
    """
    into, other = np.empty(BLOCKS * block_bytes, np.uint8), np.zeros(BLOCKS * block_bytes, np.uint8)
    options = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES)]
    async with (
        Pair.of(sockets["source"], sockets["grpc"]) as by_grpc,
        Pair.of(sockets["plain-source"], sockets["grpc"], between["plain-source"]) as in_plain_text,
        Pair.of(sockets["tls-source"], sockets["tls"], between["tls-source"]) as with_tls,
        grpc.aio.insecure_channel(sockets["bare"], options) as plain,
        grpc.aio.insecure_channel(sockets["bare-kept"], options) as kept,
    ):

        async def copy() -> None:
            np.copyto(into, other)

        works = {
            GRPC: by_grpc.move,
            GRPC_OVER_TCP: with_tls.move,
            PLAIN_OVER_TCP: in_plain_text.move,
            BARE_STREAM: BareStream(plain, into).read,
            "memcpy": copy,
        }
        async with contextlib.AsyncExitStack() as stack:
            if nixl_package() is not None:
                for name, source, destination in ((NIXL, "source", "nixl"), (NIXL_OVER_TCP, "tcp-source", "tcp")):
                    pair = await stack.enter_async_context(Pair.of(sockets[source], sockets[destination]))
                    works[name] = pair.move
                    bare = BareNixl(block_bytes, BLOCKS, _OVER_NIXL[source][1])
                    stack.callback(bare.close)
                    works[f"bare {name}"] = bare.read
            rows = await _throughput(into.nbytes, works)
        keep_freed_memory()
        both = [(await _seconds(by_grpc.move), await _seconds(BareStream(kept, into).read)) for _ in range(TURNS)]
        share = statistics.median(floor / mine for mine, floor in both)
        rows.append(("  gRPC / bare gRPC stream with the server's heap", share, "x", ""))
        return rows + await _latencies(by_grpc.lender, by_grpc.taker, by_grpc.blocks)


async def _throughput(nbytes: int, works: Mapping[str, Bytes]) -> list[Row]:
    turns = [{name: await _seconds_again(work) for name, work in works.items()} for _ in range(TURNS)]

    def ratio(mine: str, floor: str, bar: str = "") -> Row:
        return f"{mine} / {floor}", statistics.median(turn[floor] / turn[mine] for turn in turns), "x", bar

    rows = [ratio(GRPC, BARE_STREAM, ">= 0.9")]
    if NIXL in works:
        rows += [
            ratio(NIXL, GRPC, ">= 4"),
            ratio(NIXL_OVER_TCP, GRPC_OVER_TCP, ">= 2.5"),
            ratio(NIXL_OVER_TCP, GRPC, ">= 2.5"),
            ratio(NIXL_OVER_TCP, PLAIN_OVER_TCP, ">= 2.5"),
            ratio(NIXL, f"bare {NIXL}"),
            ratio(NIXL_OVER_TCP, f"bare {NIXL_OVER_TCP}"),
        ]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in works}
    return rows + [(f"  {name}", nbytes / seconds / 1e9, "GB/s", "") for name, seconds in medians.items()]


async def _seconds(work: Bytes) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


async def _seconds_again(work: Bytes) -> float:
    """Measures what moves bytes when it has just done so: what others did in between is not its cost."""
    await work()
    return await _seconds(work)


async def _latencies(lender: AsyncSession, taker: AsyncSession, blocks: BlockRefs) -> list[Row]:
    rows: list[Row] = []
    for concurrent in CONCURRENT:

        async def one(row: int) -> float:
            started = time.perf_counter()
            moved = await move_async(blocks[row], source=lender, destination=taker)
            seconds = time.perf_counter() - started
            await taker.free_blocks(moved.blocks)
            return seconds

        rounds = [await asyncio.gather(*map(one, range(concurrent))) for _ in range(max(3, 100 // concurrent))]
        p50, p99 = np.percentile(np.concatenate(rounds), [50, 99]) * 1e3
        rows += [(f"move of one block, {concurrent} at a time, p50", p50, "ms", ""), ("  p99", p99, "ms", "")]
    return rows


def rows() -> list[Row]:
    """Starts all servers and measures; without NIXL, gRPC alone."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        authority = Authority(Path(folder) / "authority")
        tls = authority.server_flags(dns("localhost"), uri("spiffe://cluster.test/statepool/worker"))
        between = {name: f"localhost:{free_port()}" for name in ("plain-source", "tls-source")}
        servers: Servers = {
            "source": ((), {}),
            "grpc": (_GRPC, {}),
            "plain-source": (("--listen", between["plain-source"], "--insecure-loopback"), {}),
            "tls-source": (("--listen", between["tls-source"], *tls), {}),
            "tls": ((*_GRPC, *tls), {}),
        } | (_OVER_NIXL if nixl_package() else {})
        sockets = {name: f"unix:{Path(folder) / name}.sock" for name in (*servers, "bare", "bare-kept")}
        program = Path(sys.executable).with_name("statepool-server")
        for name, (flags, environment) in servers.items():
            place = ("--blocks", str(2 * BLOCKS + 2), "--listen", sockets[name], "--state-dir", f"{folder}/{name}")
            command = [str(program), *MODEL, *place, *flags]
            stack.callback(_end, subprocess.Popen(command, env=os.environ | environment))
        for name in ("bare", "bare-kept"):
            stack.callback(_end, subprocess.Popen([sys.executable, "-m", "benchmarks.transfers", sockets[name], name]))
        for socket in sockets.values():
            with grpc.insecure_channel(socket) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
        with Client(sockets["source"]) as client:
            block_bytes = client.get_pool().block_bytes
        return asyncio.run(measure(sockets, between, block_bytes))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        if sys.argv[2] == "bare-kept":
            keep_freed_memory()
        asyncio.run(serve_chunks(sys.argv[1]))
    else:
        for name, value, unit, bar in rows():
            print(f"{name:52} {value:8.2f} {unit:6} {bar}")
