"""The worker's half of the align workload: forward passes that really read and write the states of a sequence."""

from statepool.aio.session import AsyncSession
from statepool.loadtest.batch import Pass
from statepool.loadtest.images import Image
from statepool.loadtest.record import Recorder
from statepool.loadtest.states import PrefixStates, extend_digests


class ForwardPasses:
    """Runs the passes of sequences whose bytes are verified."""

    def __init__(self, session: AsyncSession, states: PrefixStates, recorder: Recorder) -> None:
        self._session = session
        self._states = states
        self._recorder = recorder

    async def run(self, run: Pass) -> None:
        """Reads the state before a pass, compares all of it, and writes the states after each of its tokens.

        Raises:
            StatepoolError: Bytes could not be read or written; it is recorded.
        """
        request = run.request
        assert request.rank_index is not None  # noqa: S101 - the caller asks
        image = await self._state(run, request.rank_index)
        wrong = self._states.difference(image, request.digests, run.num_computed, request.num_accepted)
        self._recorder.verify(f"{wrong} after {run.num_computed} tokens, rank index {request.rank_index}", not wrong)
        digests = request.digests.copy()
        extend_digests(digests, run.drafts)
        images = self._states.after_pass(digests, run.num_written, len(run.drafts))
        with self._recorder.timed("write"):
            await self._session.write_blocks(request.running[: len(images)], images, rank_index=request.rank_index)

    async def _state(self, run: Pass, rank_index: int) -> Image:
        """Reads conv states from the running block, all others from the block in which they were accepted."""
        running, accepted = run.request.running, run.request.num_accepted
        length = self._states.conv_offset
        with self._recorder.timed("read"):
            images = await self._session.read_images(running[:1], rank_index=rank_index)
        if accepted > 1 and length:
            with self._recorder.timed("read"):
                images[:, :length] = await self._session.read_images(
                    running[accepted - 1], length=length, rank_index=rank_index
                )
        image: Image = images[0]
        return image
