"""What the session handles of both clients know without asking the server."""

from statepool.errors import StatepoolError
from statepool.leases import Lease
from statepool.v1.types_pb2 import SessionRef


class SessionHandle:
    """A session's identity and whether it still holds."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    @property
    def session_id(self) -> int:
        """The session."""
        return self._ref.session_id

    @property
    def epoch(self) -> int:
        """Its epoch; a take-over raises it and fences the former owner."""
        return self._ref.epoch

    @property
    def incarnation(self) -> int:
        """The server process that it lives in."""
        return self._ref.incarnation

    @property
    def owner_key(self) -> str:
        """The name under which it can be taken over; empty: none."""
        return self._lease.opened.owner_key

    @property
    def ttl(self) -> float:
        """Seconds that the lease lasts without a renewal."""
        return self._lease.opened.ttl

    @property
    def taken_over(self) -> bool:
        """Whether it existed before and was taken over, with its blocks."""
        return self._lease.opened.taken_over

    @property
    def error(self) -> StatepoolError | None:
        """Why no call can succeed any more: the session is lost or closed. None while it holds."""
        return self._lease.error

    @property
    def _ref(self) -> SessionRef:
        return self._lease.opened.ref

    def __repr__(self) -> str:
        owner = f" of {self.owner_key!r}" if self.owner_key else ""
        state = "alive" if self.error is None else repr(self.error)
        return f"<{type(self).__name__} {self.session_id} epoch {self.epoch}{owner}, ttl {self.ttl:g} s, {state}>"
