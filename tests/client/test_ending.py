"""Guarantee: what a server says as it ends a stream reaches the caller, whatever becomes of the write under way."""

from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from statepool.aio.ending import Ending

CALLS = 300
MESSAGES = [bytes(60_000)] * 30


async def _refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    async for _ in requests:
        await context.abort(grpc.StatusCode.ABORTED, "no", (("why", "because"),))
    return b""


async def test_the_status_of_a_server_that_ends_a_stream_early_is_what_the_caller_sees() -> None:
    """The server aborts at the first of many messages, over and over; no write that fails hides why."""
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(_refuse)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Writes", {"Write": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    seen: Counter[tuple[grpc.StatusCode, str | None, bool]] = Counter()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            write: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary("/test.Writes/Write")
            for _ in range(CALLS):
                call = write(iter(MESSAGES))
                ending = Ending(call)
                try:
                    await call
                except grpc.RpcError as raised:
                    error = ending.error(raised)
                    trailers: tuple[object, ...] = tuple(error.trailing_metadata() or ())
                    seen[error.code(), error.details(), ("why", "because") in trailers] += 1
    finally:
        await server.stop(None)
    assert seen.pop((grpc.StatusCode.ABORTED, "no", True)) >= 0.9 * CALLS
    assert {code for code, *_ in seen} <= {grpc.StatusCode.UNAVAILABLE}  # it was lost: whoever asks again is told
