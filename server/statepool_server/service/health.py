"""What health says: readiness, which a server loses for good, and liveness, which it has while its loop turns."""

from collections.abc import Iterable

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

LIVENESS = "liveness"
"""Service name under which health answers SERVING whatever becomes of readiness.

The event loop itself answers, so an answer is the proof that it turns. A server that drains, or has lost a part, still
holds other processes' states: it is to be taken out of service, not to be killed.
"""

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Readiness (overall, under the empty name, and per service) and liveness.

    Attributes:
        servicer: Handlers of ``grpc.health.v1.Health``.
    """

    def __init__(self, services: Iterable[str]) -> None:
        """Builds the handlers.

        Args:
            services: Full names of the services.
        """
        self.servicer = health_aio.HealthServicer()
        self._readiness = ("", *services)
        self._is_lost = False

    async def starting(self) -> None:
        """Tells that the server lives and is not ready."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self._set_readiness(_NOT_SERVING)

    async def ready(self) -> None:
        """Tells that the server is ready, unless it has lost that already."""
        if not self._is_lost:
            await self._set_readiness(_SERVING)

    async def not_ready(self) -> None:
        """Tells that the server is not ready, and never will be again."""
        self._is_lost = True
        await self._set_readiness(_NOT_SERVING)

    async def _set_readiness(self, status: "health_pb2.HealthCheckResponse.ServingStatus") -> None:
        for name in self._readiness:
            await self.servicer.set(name, status)
