"""What health says: readiness, for as long as nothing is wrong, and liveness, which lasts while the loop turns."""

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
        self._has_begun = self._is_lost = False
        self._troubles: set[str] = set()

    @property
    def is_ready(self) -> bool:
        """Whether the server is ready."""
        return self._has_begun and not self._is_lost and not self._troubles

    async def starting(self) -> None:
        """Tells that the server lives and is not ready."""
        await self.servicer.set(LIVENESS, _SERVING)
        await self._tell()

    async def ready(self) -> None:
        """Tells that the server is ready, unless it has lost that already."""
        self._has_begun = True
        await self._tell()

    async def begin(self, trouble: str) -> None:
        """Tells that the server is not ready, until this trouble ends."""
        self._troubles.add(trouble)
        await self._tell()

    async def end(self, trouble: str) -> None:
        """Tells that the server is ready again, unless it has another trouble, or has lost that for good."""
        self._troubles.discard(trouble)
        await self._tell()

    async def not_ready(self) -> None:
        """Tells that the server is not ready, and never will be again."""
        self._is_lost = True
        await self._tell()

    async def _tell(self) -> None:
        status = _SERVING if self.is_ready else _NOT_SERVING
        for name in self._readiness:
            await self.servicer.set(name, status)
