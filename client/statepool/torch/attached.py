"""The worker's side: the pool's memory as tensors of this process, without a copy."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Self

import torch

from statepool.attachment import HOST_IMPORTERS, REATTACH_SECONDS, ArenaAttachment, Importer, MappedArena
from statepool.descriptions import Pool
from statepool.errors import FeatureUnavailableError, IncarnationMismatchError, LayoutMismatchError, StatepoolError
from statepool.host import CopyEngine
from statepool.layout import ArenaLayout, StateKind
from statepool.outcomes import StepOutcome
from statepool.sync.client import Client
from statepool.torch.cuda_driver import CudaError
from statepool.torch.cuda_memory import CudaAllocation, DeviceBytes
from statepool.torch.engine import worker_engine
from statepool.torch.views import state_views
from statepool.v1 import attach_pb2, pool_pb2


def attach(
    client: Client,
    rank_index: int = 0,
    *,
    read_only: bool = False,
    layout_fingerprint: str = "",
    max_element_offset: int | None = None,
    socket_path: str | None = None,
    copy_threads: int = 2,
    reattach_within: float = REATTACH_SECONDS,
    on_lost: Callable[[StatepoolError], object] | None = None,
    synchronize: Callable[[], object] | None = None,
    timeout: float | None = None,
) -> "AttachedPool":
    """Maps the memory of one rank into this process.

    Args:
        client: Talks to a server on this machine, which runs as the same user.
        rank_index: Index into `Pool.tp_ranks`.
        read_only: Whether to only read; then writing faults (SIGSEGV, or the kernel fails on its device), and no fence
            waits for this process.
        layout_fingerprint: Fingerprint of the layout that the worker's model has; empty: whatever the pool has.
        max_element_offset: Largest element offset that the worker's kernels can address, for example 2**31 - 1; None:
            any.
        socket_path: The attach socket, where this process sees it elsewhere than the server does, as in a container.
        copy_threads: Threads of the copy engine, for host memory.
        reattach_within: Seconds within which a broken connection must be restored, as it is when the server restarts
            and still has its state; new passes wait meanwhile.
        on_lost: Called once if the connection is lost for good, from a background thread.
        synchronize: Called before a fence is answered, when the passes that it concerns have ended; returns when all
            that they have queued on devices is done. None: synchronizes the CUDA devices that were current in passes.
        timeout: Deadline in seconds of each call; None: the client's.

    Raises:
        BadFieldError: No such rank index.
        LayoutMismatchError: The pool has another layout, or one that the kernels cannot address.
        FeatureUnavailableError: The memory of the rank cannot be shared, or not with this process: it does not see the
            device, or cannot map its memory.
        QuotaExceededError: As many processes are attached as are allowed.
        PeerUntrustedError: The server does not accept this process: it belongs to another user.
        IncarnationMismatchError: The server was restarted meanwhile.
        UnavailableError: Nobody answers at the attach socket.
        OSError: This process cannot map so much.
        ValueError: copy_threads is below 1.
    """
    if copy_threads < 1:
        raise ValueError(f"copy_threads: {copy_threads} is below 1")
    pool = client.get_pool(timeout=timeout)
    offer = client.attach_pool(
        rank_index=rank_index,
        read_only=read_only,
        layout_fingerprint=layout_fingerprint,
        max_element_offset=max_element_offset,
        timeout=timeout,
    )
    devices = CudaDevices()
    attachment = ArenaAttachment(
        socket_path or offer.socket_path,
        offer.token,
        nbytes=pool.layout.nbytes,
        read_only=read_only,
        timeout=offer.token_ttl if timeout is None else timeout,
        reattach_within=reattach_within,
        on_lost=on_lost,
        synchronize=synchronize or devices.synchronize,
        importers=IMPORTERS,
    )
    try:
        if attachment.incarnation != pool.incarnation:
            raise IncarnationMismatchError("the server was restarted while this process attached to it")
        return AttachedPool(client, pool, attachment, devices, read_only=read_only, copy_threads=copy_threads)
    except BaseException:
        attachment.detach()
        raise


def import_cuda(descriptor: int, attached: attach_pb2.Attached, read_only: bool) -> MappedArena:
    """Maps memory of a device.

    Args:
        descriptor: Of the allocation.
        attached: What the server says of it.
        read_only: Whether to only read.

    Raises:
        LayoutMismatchError: The allocation is smaller than the arena.
        FeatureUnavailableError: This process cannot map it.
    """
    nbytes, told = attached.arena_bytes, attached.cuda
    if told.mapping_bytes < nbytes:
        raise LayoutMismatchError(f"an allocation of {told.mapping_bytes} bytes is no arena of {nbytes}")
    try:
        allocation = CudaAllocation.imported(descriptor, told.device_uuid, told.mapping_bytes)
        try:
            return allocation.map(nbytes, read_only=read_only)
        finally:
            allocation.release()  # the mapping keeps the memory
    except CudaError as error:
        raise FeatureUnavailableError(f"this process cannot map the arena: {error}") from error


IMPORTERS: Mapping[int, Importer] = MappingProxyType({**HOST_IMPORTERS, pool_pb2.ARENA_EXPORT_CUDA_FILE: import_cuda})
"""How to map each kind of `ArenaExport`."""


def arena_tensor(buffer: object) -> torch.Tensor:
    """Makes a tensor of an arena's bytes, uint8, ``[arena bytes]``, without a copy; it keeps them alive."""
    if isinstance(buffer, DeviceBytes):
        return torch.as_tensor(buffer, device=f"cuda:{buffer.ordinal}")
    return torch.frombuffer(buffer, dtype=torch.uint8)


class CudaDevices:
    """The CUDA devices on which passes may have queued reads and writes of the arena."""

    def __init__(self) -> None:
        self._used: set[int] = set()

    def note(self) -> None:
        """Notes the current device of this thread; costs nothing where CUDA is not used."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            self._used.add(torch.cuda.current_device())

    def synchronize(self) -> None:
        """Waits until all that was queued on them is done."""
        for device in list(self._used):
            torch.cuda.synchronize(device)


class AttachedPool:
    """The states of one rank as tensors over the server's own memory.

    What the worker reads and writes for a session happens inside `writing`. When the session is lost, the server keeps
    its blocks from others until no such pass runs here any more. After a fork, and after `close`, nothing of it can be
    used; tensors that are still around after `close` see zeros, and on a device whatever uses them fails.

    Attributes:
        description: The pool, as it was when this process attached.
        views: Every state tensor ``[block_count, *shape]`` by its name.
        tensors: The state tensors of each layer, conv states first, in the order of the layer's state shapes.
        attachment_id: This attachment, as the server lists it.
    """

    def __init__(
        self,
        client: Client,
        description: Pool,
        attachment: ArenaAttachment,
        devices: CudaDevices,
        *,
        read_only: bool,
        copy_threads: int,
    ) -> None:
        """Puts tensors on an attachment; see `attach`."""
        self.description = description
        self.attachment_id = attachment.attachment_id
        self._client = client
        self._attachment = attachment
        self._devices = devices
        self._read_only = read_only
        self._closed = False
        self._here = threading.local()
        arena = arena_tensor(attachment.buffer)
        self.views: Mapping[str, torch.Tensor] = MappingProxyType(state_views(arena, description.layout))
        self.tensors = _by_layer(self.views, description.layout)
        self._engine: CopyEngine | None = None
        if not read_only:  # building one writes to the null block
            self._engine = worker_engine(arena, description.layout, copy_threads)

    @property
    def error(self) -> StatepoolError | None:
        """Why no pass can begin any more, since the server is lost or this is closed; None while all is well."""
        return self._attachment.error

    @contextmanager
    def writing(self, session_id: int, epoch: int) -> Iterator[Self]:
        """Marks a pass: everything that is read and written for a session from the copies of a step on.

        Args:
            session_id: `Session.session_id` of the scheduler that asked for the pass.
            epoch: Its `Session.epoch`.

        Raises:
            SessionFencedError: The session has expired, or was deleted or taken over.
            UnavailableError: The server is lost, or this is closed.
            RuntimeError: Attached to read only, or this process was forked from the one that attached.
        """
        if self._read_only:
            raise RuntimeError("this process has attached to read only")
        with self._attachment.running(session_id, epoch):
            self._here.passes = getattr(self._here, "passes", 0) + 1
            try:
                yield self
            finally:
                self._here.passes -= 1
                self._devices.note()

    def run_copies(self, outcome: StepOutcome) -> None:
        """Does what a step has left to the worker: first post-copies, then zeroing, then pre-copies.

        With `Execution.SERVER` there is nothing to do, so a worker may call it in either case. On a device the copies
        are put into the current stream, in front of the kernels that follow.

        Args:
            outcome: The step's outcome; on every rank the same.

        Raises:
            RuntimeError: Called outside of `writing`.
        """
        if self._engine is None or not getattr(self._here, "passes", 0):
            raise RuntimeError("copies belong to a pass: call run_copies inside of `with pool.writing(…)`")
        if not outcome.is_planned:
            return
        if len(outcome.post_copies):
            self._engine.copy(outcome.post_copies.plan())
        if len(outcome.zeroed_block_ids):
            self._engine.zero(outcome.zeroed_block_ids)
        if len(outcome.pre_copies):
            self._engine.copy(outcome.pre_copies.plan())

    def close(self) -> None:
        """Cuts this process off from the memory and tells the server so; closing twice does nothing.

        A server that cannot be told keeps waiting for this process until it ends.
        """
        if self._closed:
            return
        self._closed = True
        if not self._attachment.detach():
            with contextlib.suppress(StatepoolError, RuntimeError):  # the server is gone, or the client closed
                self._client.detach_pool(self.attachment_id, self._attachment.token)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "attached" if self.error is None else repr(self.error)
        mode = "read-only" if self._read_only else "read-write"
        return f"<AttachedPool {self.attachment_id} {mode}, {self.description.block_count:,} blocks, {state}>"


def _by_layer(views: Mapping[str, torch.Tensor], layout: ArenaLayout) -> Mapping[int, tuple[torch.Tensor, ...]]:
    by_layer: dict[int, list[torch.Tensor]] = {}
    for state in sorted(layout.block.states, key=lambda state: (state.layer, state.kind is not StateKind.CONV)):
        by_layer.setdefault(state.layer, []).append(views[state.name])
    return MappingProxyType({layer: tuple(tensors) for layer, tensors in by_layer.items()})
