"""A directory of the prefixes of several servers, for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from statepool.disagg.prefixes import Directory, Followed
from statepool.errors import DeadlineExceededError, StatepoolError
from statepool.sync.client import Client


class PrefixDirectory(Directory):
    """Follows servers, each from a thread and over a connection of its own, for as long as it is open.

        with PrefixDirectory(["unix:///run/a.sock", "unix:///run/b.sock"]) as directory:
            hits = directory.lookup(statepool.prefix_hashes(token_ids, block_tokens))

    A watch that breaks is opened again and goes on where it was; a server that was restarted, or that cannot tell what
    was missed, is asked for a snapshot. Meanwhile its prefixes stay as they were, and `DirectoryHit.staleness` grows.
    """

    def __init__(self, targets: Iterable[str] = (), *, connect: Callable[[str], Client] = Client) -> None:
        """Begins to follow.

        Args:
            targets: The servers, in gRPC's naming.
            connect: Makes a client of a target: with credentials, or another timeout. What it raises is raised here and
                by `add`.
        """
        super().__init__()
        self._connect = connect
        self._followers: dict[str, _Follower] = {}
        self._changed = threading.Condition()
        clients = {target: connect(target) for target in targets}  # nobody is followed where one of them cannot be
        for target, client in clients.items():
            self._follow(target, client)

    def add(self, target: str) -> None:
        """Follows another server; does nothing if it is followed already."""
        if target not in self._followers:
            self._follow(target, self._connect(target))

    def remove(self, target: str) -> None:
        """Stops following a server, and forgets what it has told; does nothing if it is not followed."""
        follower = self._followers.pop(target, None)
        if follower is not None:
            del self._followed[target]
            follower.stop()
            self._tell()

    def wait_until_current(self, timeout: float) -> None:
        """Waits until everything that the servers have is known.

        Args:
            timeout: For how many seconds.

        Raises:
            DeadlineExceededError: Some were not heard in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_current, timeout):
                raise DeadlineExceededError(f"not current after {timeout:g} s: {self._lacking()}")

    def close(self) -> None:
        """Stops following, and forgets what was told; closing twice does nothing."""
        for target in list(self._followers):
            self.remove(target)

    def _follow(self, target: str, client: Client) -> None:
        follower = _Follower(Followed(target), client, self._tell)
        self._followed[target], self._followers[target] = follower.followed, follower
        follower.start()
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Follower(threading.Thread):
    """Follows one server."""

    def __init__(self, followed: Followed, client: Client, tell: Callable[[], None]) -> None:
        super().__init__(daemon=True, name=f"statepool directory of {followed.target}")
        self.followed = followed
        self._client = client
        self._tell = tell
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._watch()
            except StatepoolError as error:
                self._is_over.wait(self.followed.broke(error))
            except Exception as error:
                if not self._is_over.is_set():  # else the client was closed before the watch was opened
                    self.followed.died(error)
                    raise

    def stop(self) -> None:
        """Ends it."""
        self._is_over.set()
        self._client.close()
        self.join()

    def _watch(self) -> None:
        followed = self.followed
        for changes in self._client.watch_blocks(followed.cursor):
            was_current = followed.is_current
            followed.heard(changes)
            if followed.is_current and not was_current:
                self._tell()
