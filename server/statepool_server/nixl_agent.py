"""A NIXL agent over the arenas of host memory: the only code that imports NIXL, called from one thread alone."""

import hashlib
import importlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import structlog

from statepool.host.regions import Bytes
from statepool.transfers import NixlEndpoint, NixlRegion
from statepool_server.recency import Ids

MAX_PEERS = 64
"""Agents that are known; beyond that, those met first are forgotten where nothing is read from them."""

_log = structlog.get_logger("statepool.nixl")
_PACKAGES = ("nixl_cu12", "nixl_cu13")
_SEGMENT = "2M"
"""What UCX sends at once over TCP: with its own 8 KiB a read takes three times as long, with 64 KiB 1.3 times."""
_ENGINE_CONFIG = f"NET_DEVICES={{devices}},TCP_TX_SEG_SIZE={_SEGMENT},TCP_RX_SEG_SIZE={_SEGMENT}"
"""UCX listens on every interface unless told otherwise."""


class NixlError(Exception):
    """A read over NIXL that has failed.

    Attributes:
        reason: Why, in a word, for metrics.
    """

    reason = "other"


class PeerGoneError(NixlError):
    """The other agent's process has ended, or cannot be reached."""

    reason = "peer_gone"


class BadDescriptorError(NixlError):
    """What the source tells of its memory cannot be, or is not its memory's any more."""

    reason = "bad_descriptor"


def nixl_package() -> str | None:
    """Names the package of NIXL that is installed; None: none is."""
    return next((package for package in _PACKAGES if find_spec(package)), None)


@dataclass(slots=True)
class Read:
    """A read that has begun."""

    handle: Any
    """NIXL's handle of it."""
    peer: str
    """Name of the agent whose memory is read."""


class NixlAgent:
    """Reads blocks of other servers into blocks of this one, and lets others read.

    The memory of all ranks is one list of blocks to NIXL: rank by rank, block by block. The arenas live as long as the
    agent: to unmap memory that is registered crashes whoever reads it.
    """

    def __init__(self, name: str, arenas: Sequence[tuple[int, Bytes]], block_bytes: int, devices: str) -> None:
        """Makes an agent and registers the arenas.

        Args:
            name: Its name; no other process may ever have it.
            arenas: Rank and memory, uint8 ``[arena bytes]``, of each.
            block_bytes: Bytes of a block; blocks follow one another.
            devices: Network devices to listen on, as UCX names them, separated by commas.

        Raises:
            ValueError: NIXL is not installed, or the devices cannot be used.
        """
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")  # else it writes to standard output
        self._nixl = _import_nixl()
        self._arenas = arenas
        self._peers: dict[str, Any] = {}
        self._reads: Counter[str] = Counter()
        regions = tuple(
            NixlRegion(rank, memory.ctypes.data, block_bytes, len(memory) // block_bytes) for rank, memory in arenas
        )
        try:
            config = self._nixl.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent = self._nixl.nixl_agent(name, config)
            self._agent.create_backend("UCX", {"engine_config": _ENGINE_CONFIG.format(devices=devices)})
            spans = [(memory.ctypes.data, memory.nbytes, 0, "") for _, memory in arenas]
            self._agent.register_memory(spans, "DRAM", ["UCX"])
            self._local = self._agent.prep_xfer_dlist("NIXL_INIT_AGENT", _rows(regions), "DRAM", ["UCX"])
            metadata: bytes = self._agent.get_agent_metadata()
        except Exception as error:
            raise ValueError(f"nixl-devices {devices}: {error}") from error
        self.endpoint = NixlEndpoint(name, metadata, hashlib.sha256(metadata).digest(), regions)

    def meet(self, endpoint: NixlEndpoint) -> None:
        """Makes another agent known, if it is not.

        Raises:
            BadDescriptorError: Its metadata is damaged, or of another agent.
            PeerGoneError: It cannot be reached.
        """
        if endpoint.name in self._peers:
            return
        for name in list(self._peers)[: max(0, len(self._peers) + 1 - MAX_PEERS)]:
            self.part(name)
        if hashlib.sha256(endpoint.metadata).digest() != endpoint.metadata_sha256:
            raise BadDescriptorError("the agent's metadata is damaged")
        try:
            name = self._agent.add_remote_agent(endpoint.metadata)
            if isinstance(name, bytes):
                name = name.decode()
            try:
                if name != endpoint.name:
                    raise BadDescriptorError(f"the metadata is of agent {name!r}, not {endpoint.name!r}")
                self._peers[name] = self._agent.prep_xfer_dlist(name, _rows(endpoint.regions), "DRAM", ["UCX"])
            except Exception:
                if name not in self._peers:
                    self._agent.remove_remote_agent(name)
                raise
        except NixlError:
            raise
        except Exception as error:
            raise self._translated(error) from error

    def part(self, name: str) -> None:
        """Forgets another agent, if it is known and nothing is being read from it."""
        if name in self._peers and not self._reads[name]:
            del self._reads[name]
            self._agent.release_dlist_handle(self._peers.pop(name))
            self._agent.remove_remote_agent(name)

    def begin(self, peer: str, local: Ids, remote: Ids) -> Read:
        """Begins to read blocks; on one machine they may have been copied when this returns.

        Args:
            peer: Name of the agent whose memory is read; it was met.
            local: Places in the list of this agent's blocks, ``[n]``, in range.
            remote: Places in the other's, ``[n]``, in range.

        Raises:
            NixlError: It cannot begin.
        """
        try:
            handle = self._agent.make_prepped_xfer(
                "READ", self._local, local.astype(np.int32), self._peers[peer], remote.astype(np.int32), b"", ["UCX"]
            )
            read = Read(handle, peer)
            self._reads[peer] += 1
            try:
                if self._agent.transfer(handle) == "ERR":
                    raise PeerGoneError("the read was refused")
            except Exception:
                self.forget(read)
                raise
        except NixlError:
            raise
        except Exception as error:
            raise self._translated(error) from error
        return read

    def has_ended(self, read: Read) -> bool:
        """Tells whether a read has succeeded.

        Raises:
            NixlError: It has failed; nothing lands any more.
        """
        try:
            state = self._agent.check_xfer_state(read.handle)
        except Exception as error:
            raise self._translated(error) from error
        if state == "ERR":
            raise PeerGoneError("the read has failed")
        return bool(state == "DONE")

    def forget(self, read: Read) -> None:
        """Gives back what a read that has ended takes."""
        self._reads[read.peer] -= 1
        try:
            self._agent.release_xfer_handle(read.handle)
        except Exception as error:  # noqa: BLE001 — NIXL keeps what it cannot free, and frees it with the agent
            _log.info("a read was not released", peer=read.peer, error=str(error))

    def progress(self) -> None:
        """Does what other agents wait for; without it nothing moves over TCP."""
        self._agent.get_new_notifs()

    def _translated(self, error: Exception) -> NixlError:
        name = type(error).__name__
        if name in ("nixlRemoteDisconnectError", "nixlBackendError", "nixlCancelledError"):
            return PeerGoneError(str(error))
        return BadDescriptorError(f"{name}: {error}")


def _rows(regions: Sequence[NixlRegion]) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """Lists regions as NIXL wants them: address, bytes of a block, device, bytes from one block to the next, blocks.

    A row stands for all blocks of a region, so that what a source says of their number costs nothing before NIXL has
    looked whether they lie in its memory.
    """
    return np.array(
        [(each.address, each.block_bytes, 0, each.block_bytes, each.block_count) for each in regions], np.uint64
    )


def _import_nixl() -> ModuleType:
    package = nixl_package()
    if package is None:
        raise ValueError("nixl-devices: install statepool[nixl-cu12] or statepool[nixl-cu13]")
    return importlib.import_module(package)
