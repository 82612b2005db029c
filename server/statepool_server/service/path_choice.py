"""Which way the bytes of a transfer come, and how the ways have done so far."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import structlog

from statepool.descriptions import Pool
from statepool.errors import ChecksumMismatchError, FeatureUnavailableError, PeerLostError, StatepoolError
from statepool.transfers import DataPath
from statepool_server.service.core import Core
from statepool_server.service.data_paths import GrpcPath, Path, PathFailedError
from statepool_server.service.nixl_path import NixlPath
from statepool_server.service.nixl_thread import NixlThread
from statepool_server.service.sinks import is_direct

PathName: TypeAlias = Literal["auto", "grpc", "nixl"]
"""Which ways may be taken."""

NIXL_FEATURE = "nixl"
"""How a pool says that its memory is reached over NIXL."""

_log = structlog.get_logger("statepool.transfers")


class PathChoice:
    """Chooses ways.

    Attributes:
        transfers: Transfers that have come, by way.
        nbytes: Their bytes, by way.
        failures: Ways that have failed, by way and reason; another may have succeeded.
    """

    def __init__(self, core: Core, nixl: NixlThread | None, allowed: PathName, patience: float) -> None:
        """Begins without a transfer.

        Args:
            core: What the services share.
            nixl: Makes the NIXL calls; None: there is no NIXL.
            allowed: Which ways may be taken.
            patience: Seconds without a byte after which a source is given up.
        """
        self.transfers: Counter[DataPath] = Counter()
        self.nbytes: Counter[DataPath] = Counter()
        self.failures: Counter[tuple[DataPath, str]] = Counter()
        self._core = core
        self._nixl = nixl
        self._allowed = allowed
        self._patience = patience

    @property
    def unsettled_reads(self) -> int:
        """Reads over NIXL whose bytes may still land."""
        return 0 if self._nixl is None else self._nixl.reads

    def paths(self, theirs: Pool, check: Callable[[], None]) -> list[Path]:
        """Lists the ways for a transfer, in the order in which they are to be tried.

        Args:
            theirs: The pool that it comes from.
            check: Raises when the bytes are no longer wanted.

        Raises:
            FeatureUnavailableError: There is none that may be taken.
        """
        ways: list[Path] = []
        nixl = None if self._allowed == "grpc" else self._nixl
        if nixl is not None and nixl.is_alive and NIXL_FEATURE in theirs.features and is_direct(self._core, theirs):
            ways.append(NixlPath(self._core, nixl, check, self._patience))
        if self._allowed != "nixl":
            ways.append(GrpcPath(check, self._patience))
        if not ways:
            raise FeatureUnavailableError("the states of that pool cannot come over NIXL", field="source")
        return ways

    def came(self, path: DataPath, nbytes: int) -> None:
        """Counts a transfer that has come."""
        self.transfers[path] += 1
        self.nbytes[path] += nbytes

    def failed(self, path: DataPath, failure: PathFailedError) -> StatepoolError:
        """Counts a way that has failed.

        Returns:
            What the caller is told where there is no other.
        """
        self.failures[path, failure.reason] += 1
        _log.warning("data path failed", path=path.name.lower(), reason=failure.reason, error=str(failure))
        kind: Any = ChecksumMismatchError if failure.reason == "checksum" else PeerLostError
        error: StatepoolError = kind(f"{path.name}, {failure.reason}: {failure}", field="source")
        return error
