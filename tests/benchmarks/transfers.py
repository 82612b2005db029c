"""Moves between two servers over gRPC and NIXL, beside a bare gRPC stream of the same chunks, bare NIXL and a memcpy.

All in turns of one run. NIXL copies between processes of one machine; "over TCP" it is made to do as between machines.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import grpc
import numpy as np
import xxhash

from benchmarks.rpc_floor import Row
from statepool import AsyncClient, AsyncSession, BlockRefs
from statepool.disagg import move_async
from statepool.v1 import transfer_pb2 as pb

CHUNK_BYTES = 2**20
BLOCKS = 64
"""Of 2 MiB and some: a transfer of 128 MiB."""
TURNS = 7
CONCURRENT = (1, 16, 64)
STREAM = "/bench.Chunks/Stream"
MODEL = ("--model-config", "falcon_h1", "--tp-size", "8", "--tp-ranks", "0", "--log-level", "warning")

Bytes: TypeAlias = Callable[[], Awaitable[object]]
"""Moves the bytes of one turn."""


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


async def measure(source: str, destination: str, bare: str) -> list[Row]:
    """Measures everything, in turns."""
    options = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES)]
    async with (
        AsyncClient(source, timeout=60) as here,
        AsyncClient(destination, timeout=60) as there,
        grpc.aio.insecure_channel(bare, options) as channel,
        await here.create_session(60) as lender,
        await there.create_session(60) as taker,
    ):
        blocks = await lender.allocate_blocks(BLOCKS)
        nbytes = BLOCKS * (await here.get_pool()).block_bytes
        into = np.empty(nbytes, np.uint8)

        async def receive_all() -> None:
            transfer = await lender.create_transfer(blocks)
            received = await taker.receive_transfer(transfer, source=source)
            await taker.free_blocks(received.blocks)

        async def receive_bare() -> None:
            method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(STREAM)
            at = 0
            async for message in method(nbytes.to_bytes(8, "little")):
                chunk = pb.PullBlocksResponse.FromString(message)
                if xxhash.xxh3_64_intdigest(chunk.data) != chunk.checksum:
                    raise AssertionError("wrong bytes")
                data = np.frombuffer(chunk.data, np.uint8)[: nbytes - at]
                into[at : at + len(data)] = data
                at += len(data)

        rows = await _throughput(nbytes, receive_all, receive_bare, into)
        return rows + await _latencies(lender, taker, blocks)


async def _throughput(nbytes: int, ours: Bytes, bare: Bytes, memory: np.ndarray) -> list[Row]:
    async def copy() -> None:
        memory.copy()

    turns = [[await _seconds(work) for work in (ours, bare, copy)] for _ in range(TURNS + 1)][1:]
    times = [statistics.median(column) for column in zip(*turns, strict=True)]
    share = statistics.median(floor / mine for mine, floor, _ in turns)
    names = ("transfer between two servers", "bare gRPC stream of the same chunks", "memcpy")
    rates = [(f"  {name}", nbytes / seconds / 1e9, "GB/s", "") for name, seconds in zip(names, times, strict=True)]
    return [(f"transfer of {nbytes >> 20} MiB / bare gRPC stream", share, "x", ">= 0.9"), *rates]


async def _seconds(work: Bytes) -> float:
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


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
    """Starts all servers and measures."""
    with tempfile.TemporaryDirectory() as folder:
        sockets = [f"unix:{Path(folder) / name}.sock" for name in ("source", "destination", "bare")]
        program = Path(sys.executable).with_name("statepool-server")
        flags = [*MODEL, "--blocks", str(2 * BLOCKS + 2)]
        servers = [
            subprocess.Popen([program, *flags, "--listen", socket, "--state-dir", f"{folder}/{index}"])
            for index, socket in enumerate(sockets[:2])
        ]
        servers.append(subprocess.Popen([sys.executable, "-m", "benchmarks.transfers", sockets[2]]))
        try:
            for socket in sockets:
                with grpc.insecure_channel(socket) as channel:
                    grpc.channel_ready_future(channel).result(timeout=60)
            return asyncio.run(measure(*sockets))
        finally:
            for server in servers:
                server.terminate()
                server.wait()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        asyncio.run(serve_chunks(sys.argv[1]))
    else:
        for name, value, unit, bar in rows():
            print(f"{name:52} {value:8.2f} {unit:6} {bar}")
