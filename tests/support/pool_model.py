"""A pool written in the most obvious way: dicts and lists, no columns, no counters. What `Pool` must agree with."""

from dataclasses import dataclass, field

from statepool import errors
from statepool_server.answers import Usage
from statepool_server.transfers import TransferEnd

BLOCK_TOKENS = 4
CONDEMNED = 0
"""Number of the fence around condemned blocks; others count from 1."""


@dataclass
class ModelBlock:
    """One block."""

    generation: int = 0
    references: dict[int, int] = field(default_factory=dict)
    committed: bool = False
    name: tuple[str, bytes] | None = None
    readers: int = 0
    writing: bool = False
    fences: set[int] = field(default_factory=set)
    condemned: bool = False

    @property
    def busy(self) -> bool:
        return self.writing or self.readers > 0


@dataclass
class ModelSession:
    """One session."""

    epoch: int
    owner_key: str
    ttl: int
    expires: int


@dataclass
class ModelTransfer:
    """States that are lent."""

    token: bytes
    expires: int
    images: list[tuple[int, int, int]]
    """Block of the conv states, block of the temporal states, and rows of the conv states that are left out."""
    num_tokens: int
    pin: tuple[set[int], set[int]]


class ModelPool:
    """The rules of the pool, one `if` at a time."""

    def __init__(
        self,
        block_count: int,
        max_sessions: int,
        block_tokens: int = BLOCK_TOKENS,
        max_attachments: int = 64,
        max_transfers: int = 2,
    ) -> None:
        self.block_tokens = block_tokens
        self.blocks = {block: ModelBlock() for block in range(1, block_count)}
        self.free = list(range(1, block_count))  # the next to be handed out first
        self.evictable: list[int] = []  # least recently used first
        self.sessions: dict[int, ModelSession] = {}
        self.expired: set[int] = set()
        self.max_sessions = max_sessions
        self.last_id = 0
        self.attachments: dict[int, bool] = {}  # id to whether it only reads
        self.awaited: dict[int, set[int]] = {}  # fences that stand, and the attachments that have not answered
        self.max_attachments = max_attachments
        self.last_attachment = self.last_fence = 0
        self.transfers: dict[int, ModelTransfer] = {}
        self.ends: dict[int, tuple[bytes, TransferEnd]] = {}
        self.max_transfers = max_transfers
        self.last_transfer = 0

    # Sessions

    def create(self, owner_key: str, ttl: int, take_over: bool, now: int) -> tuple[int, int, bool]:
        for session_id, session in self.sessions.items():
            if owner_key and session.owner_key == owner_key:
                if not take_over:
                    raise errors.OwnerKeyInUseError("")
                session.epoch += 1
                self._fence(session_id)
                session.ttl, session.expires = ttl, now + ttl
                return session_id, session.epoch, True
        if len(self.sessions) == self.max_sessions:
            raise errors.QuotaExceededError("")
        self.last_id += 1
        self.sessions[self.last_id] = ModelSession(1, owner_key, ttl, now + ttl)
        return self.last_id, 1, False

    def owned(self, session_id: int, epoch: int) -> ModelSession:
        if session_id not in self.sessions:
            raise (errors.SessionExpiredError if session_id in self.expired else errors.SessionNotFoundError)("")
        if self.sessions[session_id].epoch != epoch:
            raise errors.SessionFencedError("")
        return self.sessions[session_id]

    def keep_alive(self, session_id: int, epoch: int, now: int) -> int:
        session = self.owned(session_id, epoch)
        session.expires = now + session.ttl
        return session.expires

    def delete(self, session_id: int, epoch: int) -> int:
        self.owned(session_id, epoch)
        return self._close(session_id)

    def prolong(self, until: int) -> None:
        """Lets neither leases nor transfers end before a moment."""
        leases: list[ModelSession | ModelTransfer] = [*self.sessions.values(), *self.transfers.values()]
        for lease in leases:
            lease.expires = max(lease.expires, until)

    def expire(self, now: int) -> list[int]:
        due = sorted((s.expires, i) for i, s in self.sessions.items() if s.expires <= now)
        for _, session_id in due:
            self._close(session_id)
            self.expired.add(session_id)
        return [session_id for _, session_id in due]

    def _close(self, session_id: int) -> int:
        self._fence(session_id)
        del self.sessions[session_id]
        dropped = 0
        blank: list[int] = []
        for block_id, block in self.blocks.items():
            if session_id in block.references:
                dropped += block.references.pop(session_id)
                self._settle(block_id, blank)
        self._stack(blank)
        return dropped

    # Blocks

    def check(self, refs: list[tuple[int, int]]) -> list[int]:
        for block_id, _ in refs:
            if block_id not in self.blocks:
                raise errors.BlockIndexOutOfRangeError("")
        for block_id, generation in refs:
            if self.blocks[block_id].generation != generation or generation % 2 == 0:
                raise errors.GenerationStaleError("")
        return [block_id for block_id, _ in refs]

    def allocate(self, session_id: int, epoch: int, count: int) -> list[tuple[int, int]]:
        self.owned(session_id, epoch)
        if count > len(self.free) + len(self.evictable):
            raise errors.PoolExhaustedError("")
        victims = self.evictable[: max(0, count - len(self.free))]
        for block_id in victims:
            self._unlist(block_id)
        # Evicted blocks come before blank ones, the least recently used first.
        self.free = victims + [block for block in self.free if block not in victims]
        taken, self.free = self.free[:count], self.free[count:]
        for block_id in taken:
            self.blocks[block_id].generation += 1
            self.blocks[block_id].references = {session_id: 1}
        return [(block_id, self.blocks[block_id].generation) for block_id in taken]

    def release(self, session_id: int, epoch: int, refs: list[tuple[int, int]]) -> None:
        self.owned(session_id, epoch)
        ids = self.check(refs)
        for block_id in ids:
            if self.blocks[block_id].references.get(session_id, 0) < ids.count(block_id):
                raise errors.BlockNotOwnedError("")
        for block_id in ids:
            spare = self.blocks[block_id].references[session_id] - self.in_sequences(session_id, block_id)
            if spare < ids.count(block_id):
                raise errors.BlockInSequenceError("")
        blank: list[int] = []
        for block_id in dict.fromkeys(ids):
            references = self.blocks[block_id].references
            references[session_id] -= ids.count(block_id)
            if not references[session_id]:
                del references[session_id]
            self._settle(block_id, blank)
        self._stack(blank)

    def retain(self, session_id: int, epoch: int, refs: list[tuple[int, int]]) -> None:
        self.owned(session_id, epoch)
        for block_id in self.check(refs):
            self._check_readable(session_id, block_id)
        for block_id, _ in refs:
            self.take_reference(session_id, block_id)

    def commit(
        self,
        session_id: int,
        epoch: int,
        refs: list[tuple[int, int]],
        namespace: str,
        hashes: list[bytes],
        boundaries: list[int],
        written: list[int],
    ) -> tuple[list[int], list[int]]:
        self.owned(session_id, epoch)
        ids = self.check(refs)
        if len(set(ids)) != len(ids) or any(b <= 0 or b % self.block_tokens for b in boundaries):
            raise errors.BadFieldError("")
        if boundaries != written:
            raise errors.BoundaryNotWrittenError("")
        if any(session_id not in self.blocks[block_id].references for block_id in ids):
            raise errors.BlockNotOwnedError("")
        self._check_clear(ids)
        if any(self.blocks[block_id].writing for block_id in ids):
            raise errors.BlockBusyError("")
        for block_id, value in zip(ids, hashes, strict=True):
            block = self.blocks[block_id]
            if block.committed and block.name != (namespace, value):
                raise errors.BlockNotWritableError("")
        if any(self.in_sequences(session_id, i) and not self.blocks[i].committed for i in ids):
            raise errors.BlockInSequenceError("")
        holders = []
        for block_id, value in zip(ids, hashes, strict=True):
            holder = self.find(namespace, value)
            if holder is None:
                holder = block_id
                self.blocks[block_id].name = (namespace, value)
                self.blocks[block_id].committed = True
            holders.append(holder)
        return holders, [row for row, (own, holder) in enumerate(zip(ids, holders, strict=True)) if own != holder]

    def in_sequences(self, session_id: int, block_id: int) -> int:
        """Counts the references that a session holds only through its sequences: here it has none."""
        return 0

    def find(self, namespace: str, value: bytes) -> int | None:
        return next((i for i, block in self.blocks.items() if block.name == (namespace, value)), None)

    def lookup(self, session_id: int, epoch: int, namespace: str, hashes: list[bytes]) -> tuple[int, int, int] | None:
        self.owned(session_id, epoch)
        for row in reversed(range(len(hashes))):
            block_id = self.find(namespace, hashes[row])
            if block_id is not None:
                self.take_reference(session_id, block_id)
                return row, block_id, self.blocks[block_id].generation
        return None

    def evict(
        self, session_id: int, epoch: int, refs: list[tuple[int, int]], namespace: str, hashes: list[bytes]
    ) -> tuple[int, int]:
        self.owned(session_id, epoch)
        named = [block_id for block_id in self.check(refs) if self.blocks[block_id].name]
        found = [block_id for value in hashes if (block_id := self.find(namespace, value)) is not None]
        blank: list[int] = []
        chosen = sorted({*named, *found})
        for block_id in chosen:
            self.blocks[block_id].name = None
            if block_id in self.evictable:
                self.evictable.remove(block_id)
            self._settle(block_id, blank)
        self._stack(blank)
        return len(chosen), len(blank)

    # Attachments

    def attach(self, read_only: bool) -> int:
        if len(self.attachments) == self.max_attachments:
            raise errors.QuotaExceededError("")
        self.last_attachment += 1
        self.attachments[self.last_attachment] = read_only
        return self.last_attachment

    def detach(self, attachment_id: int) -> int:
        self._check_attached(attachment_id)
        del self.attachments[attachment_id]
        return self._answer(list(self.awaited), {attachment_id})

    def quiesced(self, attachment_id: int, number: int) -> int:
        self._check_attached(attachment_id)
        if not 0 < number <= self.last_fence:
            raise errors.BadFieldError("")
        return self._answer([number], {attachment_id})

    def release_quarantine(self, attachment_id: int) -> int:
        if attachment_id == 0:
            return self._answer(list(self.awaited), set(self.attachments))
        self._check_attached(attachment_id)
        return self._answer(list(self.awaited), {attachment_id})

    def condemn(self, refs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        found = []
        for block_id, generation in sorted(set(refs)):
            block = self.blocks.get(block_id)
            if block is None or block.generation != generation or not block.committed or block.condemned:
                continue
            block.condemned, block.name = True, None
            block.fences.add(CONDEMNED)
            if block_id in self.evictable:
                self.evictable.remove(block_id)
            found.append((block_id, generation))
        return found

    def pardon(self) -> int:
        blank: list[int] = []
        around = [i for i, block in self.blocks.items() if block.condemned]
        for block_id in around:
            self.blocks[block_id].condemned = False
            self.blocks[block_id].fences.remove(CONDEMNED)
            self._settle(block_id, blank)
        self._stack(blank)
        return len(around)

    def check_uncondemned(self, ids: list[int]) -> None:
        if any(self.blocks[block_id].condemned for block_id in ids):
            raise errors.ChecksumMismatchError("")

    def _check_clear(self, ids: list[int]) -> None:
        self.check_uncondemned(ids)
        if any(self.blocks[block_id].fences for block_id in ids):
            raise errors.BlockBusyError("")

    def _check_attached(self, attachment_id: int) -> None:
        if attachment_id not in self.attachments:
            raise errors.AttachmentNotFoundError("")

    def _fence(self, session_id: int) -> None:
        writers = {attached for attached, read_only in self.attachments.items() if not read_only}
        lost = [b for b in self.blocks.values() if session_id in b.references and not b.committed]
        if writers:
            self.last_fence += 1
            self.awaited[self.last_fence] = writers
            for block in lost:
                block.fences.add(self.last_fence)

    def _answer(self, numbers: list[int], attachment_ids: set[int]) -> int:
        cleared = 0
        for number in numbers:
            if number in self.awaited:
                self.awaited[number] -= attachment_ids
                if not self.awaited[number]:
                    cleared += self._lift(number)
        return cleared

    def _lift(self, number: int) -> int:
        del self.awaited[number]
        blank: list[int] = []
        around = [i for i, block in self.blocks.items() if number in block.fences]
        for block_id in around:
            self.blocks[block_id].fences.remove(number)
            self._settle(block_id, blank)
        self._stack(blank)
        return sum(1 for block_id in around if not self.blocks[block_id].fences)

    # Pins

    def pin_read(self, session_id: int, epoch: int, refs: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
        self.owned(session_id, epoch)
        return self.mark(self._sources(session_id, refs), [])

    def pin_write(self, session_id: int, epoch: int, refs: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
        self.owned(session_id, epoch)
        return self.mark([], self.destinations(session_id, refs))

    def pin_copy(
        self,
        session_id: int,
        epoch: int,
        src: list[tuple[int, int]],
        dst: list[tuple[int, int]],
        temporal_src: list[tuple[int, int]],
    ) -> tuple[set[int], set[int]]:
        self.owned(session_id, epoch)
        writers = self.destinations(session_id, dst)
        return self.mark(self._sources(session_id, src) + self._sources(session_id, temporal_src), writers)

    def unpin(self, pin: tuple[set[int], set[int]]) -> None:
        readers, writers = pin
        for block_id in readers:
            self.blocks[block_id].readers -= 1
        for block_id in writers:
            self.blocks[block_id].writing = False

    def _sources(self, session_id: int, refs: list[tuple[int, int]]) -> list[int]:
        ids = self.check(refs)
        for block_id in ids:
            self._check_readable(session_id, block_id)
        self._check_clear(ids)
        if any(self.blocks[block_id].writing for block_id in ids):
            raise errors.BlockBusyError("")
        return ids

    def destinations(self, session_id: int, refs: list[tuple[int, int]]) -> list[int]:
        ids = self.check(refs)
        if len(set(ids)) != len(ids):
            raise errors.BadFieldError("")
        if any(session_id not in self.blocks[block_id].references for block_id in ids):
            raise errors.BlockNotOwnedError("")
        if any(self.blocks[block_id].committed for block_id in ids):
            raise errors.BlockNotWritableError("")
        self._check_clear(ids)
        if any(self.blocks[block_id].busy for block_id in ids):
            raise errors.BlockBusyError("")
        return ids

    def mark(self, sources: list[int], writers: list[int]) -> tuple[set[int], set[int]]:
        readers = set(sources) - set(writers)
        for block_id in readers:
            self.blocks[block_id].readers += 1
            if block_id in self.evictable:
                self.evictable.remove(block_id)
        for block_id in writers:
            self.blocks[block_id].writing = True
        return readers, set(writers)

    # Transfers

    def lend_blocks(
        self, session_id: int, epoch: int, refs: list[tuple[int, int]], token: bytes, expires: int
    ) -> tuple[int, set[int]]:
        self.owned(session_id, epoch)
        ids = self.check(refs)
        if any(not self.blocks[i].committed and any(self.in_sequences(s, i) for s in self.sessions) for i in ids):
            raise errors.BlockInSequenceError("")
        return self.lend(session_id, [(block_id, block_id, 0) for block_id in ids], 0, token, expires)

    def lend(
        self, session_id: int, images: list[tuple[int, int, int]], num_tokens: int, token: bytes, expires: int
    ) -> tuple[int, set[int]]:
        """Opens a transfer; returns its id and what is pinned for it."""
        if len(self.transfers) == self.max_transfers:
            raise errors.QuotaExceededError("")
        named = [block_id for conv, temporal, _ in images for block_id in (conv, temporal)]
        pin = self.mark(self._sources(session_id, [(i, self.blocks[i].generation) for i in named]), [])
        self.last_transfer += 1
        self.transfers[self.last_transfer] = ModelTransfer(token, expires, images, num_tokens, pin)
        return self.last_transfer, pin[0]

    def end_transfer(self, transfer_id: int, token: bytes, end: TransferEnd) -> None:
        if self.ends.get(transfer_id) != (token, end):
            self.transfer(transfer_id, token)
            self._end(transfer_id, end)

    def expire_transfers(self, now: int) -> list[int]:
        due = [transfer_id for transfer_id, transfer in self.transfers.items() if transfer.expires <= now]
        for transfer_id in due:
            self._end(transfer_id, TransferEnd.EXPIRED)
        return due

    def check_transfer(self, transfer_id: int, token: bytes) -> ModelTransfer:
        transfer = self.transfer(transfer_id, token)
        for conv, temporal, _ in transfer.images:
            self._check_clear([conv, temporal])
        return transfer

    def transfer(self, transfer_id: int, token: bytes) -> ModelTransfer:
        transfer = self.transfers.get(transfer_id)
        if transfer is None or transfer.token != token:
            raise errors.TransferNotFoundError("")
        return transfer

    def _end(self, transfer_id: int, end: TransferEnd) -> None:
        transfer = self.transfers.pop(transfer_id)
        self.ends[transfer_id] = (transfer.token, end)
        self.unpin(transfer.pin)
        self.settle_after_unpin(sorted(transfer.pin[0]))

    # What is there

    def usage(self) -> Usage:
        blocks = self.blocks.values()
        allocated = [block for block in blocks if block.generation % 2]
        return Usage(
            free=sum(1 for block in blocks if not block.generation % 2),
            evictable=sum(1 for block in allocated if not block.references and not block.busy and not block.fences),
            held=sum(1 for block in allocated if block.references),
            releasing=sum(1 for block in allocated if not block.references and (block.busy or block.fences)),
            committed=sum(1 for block in blocks if block.name),
            busy=sum(1 for block in blocks if block.busy),
            sessions=len(self.sessions),
            sequences=0,
            quarantined=sum(1 for block in blocks if block.fences),
        )

    # Steps

    def _check_readable(self, session_id: int, block_id: int) -> None:
        block = self.blocks[block_id]
        if not block.committed and session_id not in block.references:
            raise errors.BlockNotOwnedError("")

    def take_reference(self, session_id: int, block_id: int) -> None:
        references = self.blocks[block_id].references
        references[session_id] = references.get(session_id, 0) + 1
        if block_id in self.evictable:
            self.evictable.remove(block_id)

    def _unlist(self, block_id: int) -> None:
        self.evictable.remove(block_id)
        block = self.blocks[block_id]
        block.name, block.committed = None, False
        block.generation += 1

    def settle_after_unpin(self, order: list[int]) -> None:
        """Releases blocks that lost their last pin, in the order in which the pool was told of them."""
        blank: list[int] = []
        for block_id in order:
            self._settle(block_id, blank)
        self._stack(blank)

    def _settle(self, block_id: int, blank: list[int]) -> None:
        block = self.blocks[block_id]
        if block.references or block.busy or block.fences or block.generation % 2 == 0 or block_id in self.evictable:
            return
        if block.name:
            self.evictable.append(block_id)
            return
        block.generation += 1
        block.committed = False
        blank.append(block_id)

    def _stack(self, blank: list[int]) -> None:
        self.free = blank + self.free
