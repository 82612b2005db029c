"""A server in front of a server that passes all calls on, and changes what the other says of its memory."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from statepool.v1 import transfer_pb2 as pb

Lie = Callable[[Any], None]
"""Changes a response in its place."""

_TYPES: dict[str, type[Any]] = {
    "DescribeTransfer": pb.DescribeTransferResponse,
    "SumTransfer": pb.SumTransferResponse,
}


class _Liar(grpc.GenericRpcHandler):
    def __init__(self, channel: grpc.Channel, lies: dict[str, Lie]) -> None:
        self._channel = channel
        self._lies = lies

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        name = details.method.rpartition("/")[2]
        if name == "PullBlocks":
            stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(details.method)
            return grpc.unary_stream_rpc_method_handler(lambda request, _context: iter(stream(request)))
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(details.method)

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return self._told(name, unary(request, timeout=context.time_remaining()))
            except grpc.RpcError as error:
                context.set_trailing_metadata(tuple((item.key, item.value) for item in error.trailing_metadata()))
                context.abort(error.code(), error.details() or "")

        return grpc.unary_unary_rpc_method_handler(answer)

    def _told(self, name: str, response: bytes) -> bytes:
        if name not in self._lies:
            return response
        message = _TYPES[name].FromString(response)
        self._lies[name](message)
        return bytes(message.SerializeToString())


@contextlib.contextmanager
def liar(folder: Path, target: str, **lies: Lie) -> Iterator[str]:
    """Serves in front of a server.

    Args:
        folder: Where its socket is made.
        target: The server.
        lies: What is changed in the responses of a procedure, by its name.

    Yields:
        Where it listens.
    """
    address = f"unix:{folder}/liar.sock"
    with ThreadPoolExecutor(4) as executor, grpc.insecure_channel(target) as channel:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers((_Liar(channel, lies),))
        server.add_insecure_port(address)
        server.start()
        yield address
        server.stop(None).wait()
