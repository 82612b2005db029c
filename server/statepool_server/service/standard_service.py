"""gRPC's own services that answer to everybody, health and reflection: their streams end with the server, as others."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from statepool.errors import StatepoolError
from statepool_server.access.callers import NOBODY
from statepool_server.service.calls import END_SECONDS, Context, end_call
from statepool_server.service.lasting import LastingStreams


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Handlers of ``grpc.health.v1.Health``."""

    def __init__(self, servicer: health_aio.HealthServicer, lasting: LastingStreams) -> None:
        """Builds the handlers.

        Args:
            servicer: Knows what health says.
            lasting: Ends the streams.
        """
        self._servicer = servicer
        self._lasting = lasting

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        """Tells what health says."""
        return await self._servicer.Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Tells it again whenever it changes; whoever watches until the end is told the last, too."""
        told = _Told(context)
        try:
            with self._lasting.opened(NOBODY, lambda: NOBODY):
                await self._servicer.Watch(request, told)
        except StatepoolError as error:
            last = await self._servicer.Check(request, context)
            if last != told.last:
                await context.write(last)
            await end_call(context, error, END_SECONDS)


class ReflectionService(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    """Handlers of ``grpc.reflection.v1alpha.ServerReflection``."""

    def __init__(self, service_names: Iterable[str], lasting: LastingStreams) -> None:
        """Builds the handlers.

        Args:
            service_names: Full names of the services that are described.
            lasting: Ends the streams.
        """
        super().__init__(service_names)
        self._lasting = lasting

    async def ServerReflectionInfo(self, requests: AsyncIterator[Any], context: Context) -> None:
        """Describes services for as long as the client asks."""
        try:
            with self._lasting.opened(NOBODY, lambda: NOBODY):
                async for response in super().ServerReflectionInfo(requests, context):
                    await context.write(response)
        except StatepoolError as error:
            await end_call(context, error, END_SECONDS)


class _Told:
    """The context of a watcher, which knows what was told last."""

    def __init__(self, context: Context) -> None:
        self.last: Any = None
        self._context = context

    async def write(self, response: Any) -> None:
        self.last = response
        await self._context.write(response)
