"""This process's connection to the attach socket of a server: the arena, the lock, and the answers to fences.

It knows nothing of torch; `statepool.torch.attach` puts tensors on top.
"""

import contextlib
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol, TypeAlias

from google.protobuf.message import DecodeError

from statepool.errors import FeatureUnavailableError, LayoutMismatchError, StatepoolError, UnavailableError
from statepool.fences import Fence, Fences
from statepool.framing import MAX_FRAME_BYTES, frame
from statepool.greeting import DETACH, Greeted, greet, leave
from statepool.lease import tell
from statepool.mapping import Mapping as FileMapping
from statepool.v1 import attach_pb2 as pb
from statepool.v1 import pool_pb2

DETACH_SECONDS = 1.0
"""How long detaching waits until the server has taken note."""
REATTACH_SECONDS = 60.0
"""How long a broken connection may be away; a server is started again in a few seconds."""
FIRST_PAUSE_SECONDS = 0.02
"""Pause before the first attempt to connect again."""
LONGEST_PAUSE_SECONDS = 1.0
"""Longest pause between two of them."""
_all: "weakref.WeakSet[ArenaAttachment]" = weakref.WeakSet()


class MappedArena(Protocol):
    """An arena in this process's address space."""

    @property
    def buffer(self) -> object:
        """The bytes, for whoever makes tensors of them."""

    def detach(self) -> None:
        """Makes sure that nothing in this process can read or write the arena any more; twice does nothing."""


Importer: TypeAlias = Callable[[int, pb.Attached, bool], MappedArena]
"""Maps what came for a token. It takes the arena's descriptor, which is closed afterwards, the welcome, and whether to
only read; it raises a `StatepoolError` or `OSError`."""


def import_file(descriptor: int, attached: pb.Attached, read_only: bool) -> MappedArena:
    """Maps host memory."""
    return FileMapping(descriptor, attached.arena_bytes, read_only=read_only)


HOST_IMPORTERS: Mapping[int, Importer] = MappingProxyType({pool_pb2.ARENA_EXPORT_FILE: import_file})
"""How to map each kind of export that needs no torch."""


class ArenaAttachment:
    """The arena of one rank, mapped into this process.

    A thread answers fences: at once where no pass of the lost session runs here, else when the last one has ended.
    When the connection breaks, passes that would begin wait until it stands again: a server that is started again and
    goes on with the state of the one before knows this process. If it does not in time, no pass begins any more; the
    mapping stays, and so does the attachment, until `detach` or the process's death. In a forked process nothing of it
    can be used.

    Attributes:
        attachment_id: The attachment, as the server counts it.
        token: With which it was made.
        incarnation: The server process; the last one.
        error: Why no pass can begin any more; None while all is well.
    """

    def __init__(
        self,
        socket_path: str,
        token: bytes,
        *,
        nbytes: int,
        read_only: bool,
        timeout: float,
        reattach_within: float = REATTACH_SECONDS,
        on_lost: Callable[[StatepoolError], object] | None = None,
        synchronize: Callable[[], object] = lambda: None,
        importers: Mapping[int, Importer] = HOST_IMPORTERS,
    ) -> None:
        """Attaches.

        Args:
            socket_path: The server's attach socket.
            token: From `Client.attach_pool`.
            nbytes: Bytes that the arena must have.
            read_only: As it was asked for.
            timeout: Seconds to wait for each answer.
            reattach_within: Seconds in which a broken connection must stand again.
            on_lost: Called once if the connection is lost for good, from a background thread.
            synchronize: Called before a fence is answered, when the passes that it concerns have ended; returns when
                all that they have queued on devices is done.
            importers: How to map each kind of `ArenaExport`.

        Raises:
            UnavailableError: Nobody answers there, or not in time.
            PeerUntrustedError: The server does not take the token or this process.
            LayoutMismatchError: The arena has another size.
            FeatureUnavailableError: This process cannot map memory of this kind.
            StatepoolError: Whatever else the server has against it.
        """
        self.error: StatepoolError | None = None
        self.token = token
        self._on_lost = on_lost
        self._synchronize = synchronize
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._socket_path, self._timeout, self._reattach_within = socket_path, timeout, reattach_within
        self._leaving = threading.Event()
        greeted = greet(socket_path, pb.Hello(token=token), timeout)
        self._take(greeted)
        attached, (arena, lock) = greeted.attached, greeted.descriptors
        known = zip(attached.session_ids, attached.epochs, strict=True)
        self._fences = Fences(attached.last_session_id, dict(known))
        self._lock_descriptor = lock
        self.attachment_id = attached.attachment_id
        try:
            if attached.arena_bytes != nbytes:
                raise LayoutMismatchError(f"the arena has {attached.arena_bytes} bytes, not {nbytes}")
            self._mapping = _importer(importers, attached)(arena, attached, read_only)
        except BaseException:
            os.close(lock)
            leave(self._stream)
            raise
        finally:
            os.close(arena)
        _all.add(self)
        self._listener = threading.Thread(target=self._listen, name="statepool-fences", daemon=True)
        self._listener.start()

    @property
    def buffer(self) -> object:
        """The arena's bytes: of host memory, a ctypes array ``[nbytes]``."""
        self._check_process()
        return self._mapping.buffer

    @contextmanager
    def running(self, session_id: int, epoch: int) -> Iterator[None]:
        """Marks what is done inside as reading and writing for a session.

        Raises:
            SessionFencedError: The session is lost.
            UnavailableError: The connection is, and has not come back in time: nobody could tell this process to stop.
            RuntimeError: This process was forked from the one that attached.
        """
        self._check_process()
        try:
            with self._fences.running(session_id, epoch):
                yield
        finally:
            self._answer()

    def detach(self) -> bool:
        """Makes sure that nothing in this process can read or write the arena any more, says so, and hangs up.

        Returns:
            Whether the server has taken note; if not, it waits for this process until `Client.detach_pool`, or its end.
        """
        self._check_process()
        is_told = self.error is None and self._listener is not threading.current_thread()
        self._lose(UnavailableError("this process has detached"), told=False)
        self._mapping.detach()
        with contextlib.suppress(OSError), self._sending:
            self._stream.sendall(DETACH)
        if is_told:  # the server ends the connection when it has taken note
            self._listener.join(DETACH_SECONDS)
            is_told = not self._listener.is_alive()
        self._hang_up()
        return is_told

    def abandon(self) -> None:
        """Gives descriptors back in a process that was forked from the one that attached."""
        self._hang_up()

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"the attachment belongs to process {self._pid}; attach again after a fork")

    def _take(self, greeted: Greeted) -> None:
        """Goes on over a connection."""
        self._stream, self._frames, self._early = greeted.stream, greeted.frames, greeted.early
        self.incarnation = greeted.attached.incarnation

    def _listen(self) -> None:
        """Takes fences, over one connection after the other, until there is none any more."""
        error = self._serve()
        while self.error is None:
            self._fences.suspend()
            try:
                self._connect_again(error)
            except StatepoolError as final:
                self._lose(final)
                return
            self._fences.resume()
            error = self._serve()
        self._lose(error)

    def _serve(self) -> UnavailableError:
        """Takes fences until the connection ends; returns how it did."""
        try:
            for message in self._early:
                self._told(pb.ServerFrame.FromString(message))
            while data := self._stream.recv(MAX_FRAME_BYTES):
                for message in self._frames.feed(data):
                    self._told(pb.ServerFrame.FromString(message))
            return UnavailableError("the server has ended the attachment's connection")
        except (OSError, ValueError, DecodeError) as error:
            return UnavailableError(f"the attachment's connection broke: {error}")

    def _connect_again(self, error: StatepoolError) -> None:
        """Tries until the server knows this process again.

        Raises:
            StatepoolError: It does not in time, or never will.
        """
        deadline, pause = time.monotonic() + self._reattach_within, FIRST_PAUSE_SECONDS
        while time.monotonic() < deadline and not self._leaving.wait(pause):
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            try:
                self._greet_again()
            except UnavailableError as refusal:  # nobody there yet, or it has not noticed that we were gone
                error = refusal
                continue
            return
        raise error

    def _greet_again(self) -> None:
        hello = pb.Hello(token=self.token, attachment_id=self.attachment_id)
        greeted = greet(self._socket_path, hello, self._timeout)
        with self._sending:
            self._stream.close()
            self._take(greeted)

    def _told(self, message: pb.ServerFrame) -> None:
        if message.HasField("fence"):
            self._fences.add(Fence(message.fence.number, message.fence.session_id, message.fence.epoch))
            self._answer()

    def _answer(self) -> None:
        """Answers the fences that no running pass is concerned by, when devices have done what was queued."""
        quiet = self._fences.take_quiet()
        if not quiet:
            return
        try:
            self._synchronize()
        except Exception as error:  # noqa: BLE001 — whatever it is: nobody knows what is written still, so nothing is said
            self._lose(UnavailableError(f"what was queued cannot be waited for: {error}"))
            return
        for fence in quiet:
            with contextlib.suppress(OSError), self._sending:  # whoever connects again is told of the fence again
                self._stream.sendall(frame(pb.WorkerFrame(quiesced=pb.Quiesced(number=fence.number))))

    def _lose(self, error: StatepoolError, *, told: bool = True) -> None:
        with self._sending:
            if self.error is not None:
                return
            self.error = error
        self._leaving.set()
        self._fences.close(error)
        if told:
            tell(self._on_lost, error, f"on_lost of attachment {self.attachment_id}")

    def _hang_up(self) -> None:
        descriptor, self._lock_descriptor = self._lock_descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        if os.getpid() == self._pid:
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._stream.close()


def _importer(importers: Mapping[int, Importer], attached: pb.Attached) -> Importer:
    importer = importers.get(attached.export)
    if importer is None:
        kinds = pool_pb2.ArenaExport.items()
        name = next((name for name, value in kinds if value == attached.export), str(attached.export))
        raise FeatureUnavailableError(f"this process cannot map an arena that is exported as {name}")
    return importer


def _abandon_all() -> None:
    for attachment in list(_all):
        attachment.abandon()


os.register_at_fork(after_in_child=_abandon_all)
