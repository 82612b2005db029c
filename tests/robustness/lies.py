"""A client that lies: every one of its calls must be refused for a precise reason, and change nothing."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from service.raw import Stubs, ref_of
from statepool import BlockState, Client, Session, StatepoolError
from statepool.channel import error_of_rpc
from statepool.refs import BlockRefs
from statepool.v1 import block_pb2, pool_pb2, session_pb2
from statepool.v1.sequence_pb2 import EngineStep, StepRequest
from statepool.v1.types_pb2 import SessionRef
from statepool.wire import refs_to_wire

ACCEPTED = "accepted"
CALL_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Lie:
    """A call that must be refused."""

    name: str
    """What is untrue."""
    method: Callable[..., Any]
    """The RPC."""
    request: object
    """Its request."""

    def tell(self) -> str:
        """Makes the call; returns the name of the error that it got, or `ACCEPTED`."""
        try:
            self.method(self.request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            return type(error_of_rpc(error)).__name__
        return ACCEPTED


class Liar:
    """Holds one honest session, looks at what others have, and lies about all of it."""

    def __init__(self, target: str, dice: random.Random) -> None:
        self._client = Client(target, timeout=CALL_SECONDS)
        self._channel = grpc.insecure_channel(target)
        self._stubs = Stubs(self._channel)
        self._dice = dice

    def lies(self) -> Iterator[tuple[str, str]]:
        """Tells lies in a random order; yields the name of each, and the error that it got, or `ACCEPTED`."""
        try:
            with self._client.create_session(30.0) as session:
                blocks = session.allocate_blocks(1)
                lies = [*self._identities(session, blocks), *self._blocks(session, blocks), *self._repeats(session)]
                self._dice.shuffle(lies)
                for lie in lies:
                    yield lie.name, lie.tell()
        except (StatepoolError, grpc.RpcError) as error:  # to the honest calls: the server is stopped, or full
            yield "no lie", type(error).__name__

    def _identities(self, session: Session, blocks: BlockRefs) -> Iterator[Lie]:
        """Claims to be the owner of a session: in another epoch, of another server process, or of one that is not."""
        victim = self._dice.choice([info.session_id for info in self._client.list_sessions()])
        mine = ref_of(session)
        claims = {
            "wrong epoch": SessionRef(session_id=victim, epoch=2**40, incarnation=mine.incarnation),
            "epoch 0": SessionRef(session_id=victim, epoch=0, incarnation=mine.incarnation),
            "wrong incarnation": SessionRef(session_id=victim, epoch=1, incarnation=mine.incarnation ^ 1),
            "no session": SessionRef(session_id=2**40, epoch=1, incarnation=mine.incarnation),
        }
        stubs = self._stubs
        for name, ref in claims.items():
            free = block_pb2.FreeBlocksRequest(session=ref, blocks=refs_to_wire(blocks))
            yield Lie(f"{name}, free", stubs.blocks.FreeBlocks, free)
            allocate = block_pb2.AllocateBlocksRequest(session=ref, count=1)
            yield Lie(f"{name}, allocate", stubs.blocks.AllocateBlocks, allocate)
            yield Lie(f"{name}, step", stubs.sequences.Step, StepRequest(session=ref, step=EngineStep(step=1)))
            yield Lie(f"{name}, delete", stubs.sessions.DeleteSession, session_pb2.DeleteSessionRequest(session=ref))

    def _blocks(self, session: Session, blocks: BlockRefs) -> Iterator[Lie]:
        """Claims blocks that are no longer its own or never were, and a state that was not written."""
        ref, stubs, mine = ref_of(session), self._stubs.blocks, refs_to_wire(blocks)
        stale = refs_to_wire(BlockRefs.of(blocks.block_ids, blocks.generations + 2))
        unwritten = {"prefix_hashes": [b"lie"], "boundary_tokens": [32], "written_through_tokens": [16]}
        yield Lie("stale free", stubs.FreeBlocks, block_pb2.FreeBlocksRequest(session=ref, blocks=stale))
        yield Lie("stale copy", stubs.CopyBlocks, block_pb2.CopyBlocksRequest(session=ref, src=mine, dst=stale))
        commit = block_pb2.CommitBlocksRequest(session=ref, blocks=mine, **unwritten)  # type: ignore[arg-type]
        yield Lie("unwritten commit", stubs.CommitBlocks, commit)
        for foreign in self._foreign(session):
            theirs = refs_to_wire(foreign)
            yield Lie("foreign free", stubs.FreeBlocks, block_pb2.FreeBlocksRequest(session=ref, blocks=theirs))
            yield Lie("foreign copy", stubs.CopyBlocks, block_pb2.CopyBlocksRequest(session=ref, src=mine, dst=theirs))
        detach = pool_pb2.DetachPoolRequest(attachment_id=1, token=b"0" * 16)
        yield Lie("foreign detach", self._stubs.pool.DetachPool, detach)

    def _foreign(self, session: Session) -> Iterator[BlockRefs]:
        """Finds a block that another session writes, if one does; it stays another's, whatever becomes of it."""
        for page in self._client.list_blocks(states=[BlockState.OWNED]):
            others = (page.session_ids != session.session_id).nonzero()[0].tolist()
            if others:
                yield page.blocks[self._dice.choice(others)]
                return

    def _repeats(self, session: Session) -> Iterator[Lie]:
        """Numbers steps as it likes, and gives the number of a step, and the id of a request, to another one."""
        ref, stubs = ref_of(session), self._stubs
        session.step(1)
        for name, step in {
            "future step": EngineStep(step=7),
            "another step 1": EngineStep(step=1, finishes=[1]),
            "unknown sequence": EngineStep(step=2, settled_step=1, finishes=[2**40]),
        }.items():
            yield Lie(name, stubs.sequences.Step, StepRequest(session=ref, step=step))
        name = self._dice.randbytes(8).hex()
        once, again = (
            block_pb2.LookupPrefixRequest(session=ref, request_id=name, prefix_hashes=[value]) for value in (b"a", b"b")
        )
        stubs.blocks.LookupPrefix(once, timeout=CALL_SECONDS)
        yield Lie("another request", stubs.blocks.LookupPrefix, again)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()
        self._client.close()
