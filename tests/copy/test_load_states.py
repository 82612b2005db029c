"""Guarantee: the align workload's oracle knows every byte of a state, wherever acceptance and copies put it."""

import numpy as np
import pytest

from statepool.calls.images import Images
from statepool.copies import CopyPlan
from statepool.layout import ArenaLayout, Arrangement, ConvLayout
from statepool.loadtest.images import Image
from statepool.loadtest.states import NO_TOKENS, PrefixStates, extend_digests
from support.arenas import copied, layout_of

NUM_SPEC = 2
PROMPT = 7


def digests_of(tokens: list[int]) -> list[int]:
    """Digests every prefix."""
    digests = [NO_TOKENS]
    extend_digests(digests, tokens)
    return digests


@pytest.fixture(params=list(ConvLayout))
def layout(request: pytest.FixtureRequest) -> ArenaLayout:
    """Gives a small arena."""
    return layout_of(request.param, Arrangement.BLOCK_MAJOR)


@pytest.fixture
def states(layout: ArenaLayout) -> PrefixStates:
    """Gives the oracle of its blocks."""
    return PrefixStates(layout.block, NUM_SPEC, seed=3)


def state_at(states: PrefixStates, images: Images, num_accepted: int) -> Image:
    """Reads a state as a worker does: conv of the running block, the rest of the block that was accepted."""
    image: Image = images[0].copy()
    image[: states.conv_offset] = images[num_accepted - 1, : states.conv_offset]
    return image


@pytest.mark.parametrize("num_accepted", [1, 2, 3])
def test_accepted_tokens_find_their_state(states: PrefixStates, num_accepted: int) -> None:
    """After a pass with drafts the state of any acceptance is where §6 of the design says, and nowhere else."""
    digests = digests_of(list(range(PROMPT + NUM_SPEC)))

    images = states.after_pass(digests, PROMPT, NUM_SPEC)

    image = state_at(states, images, num_accepted)
    assert states.difference(image, digests, PROMPT + num_accepted - 1, num_accepted) == ""
    for wrong in {1, 2, 3} - {num_accepted}:
        assert states.difference(image, digests, PROMPT + wrong - 1, wrong) != ""


@pytest.mark.parametrize("num_accepted", [1, 2, 3])
def test_a_copy_moves_the_state_to_one_accepted_token(
    layout: ArenaLayout, states: PrefixStates, num_accepted: int
) -> None:
    """A copy with the bias of the acceptance makes the state of the longer prefix that of a pass without drafts."""
    digests = digests_of(list(range(PROMPT + NUM_SPEC)))
    arena = np.zeros((layout.block_count, layout.block.image_bytes), np.uint8)
    arena[1 : 2 + NUM_SPEC] = states.after_pass(digests, PROMPT, NUM_SPEC)
    dst = 2 + NUM_SPEC

    after = copied(
        arena.reshape(-1),
        layout,
        CopyPlan(*(np.array([value]) for value in (1, dst, num_accepted - 1, num_accepted))),
    )

    image = after.reshape(arena.shape)[dst]
    assert states.difference(image, digests, PROMPT + num_accepted - 1, 1) == ""


def test_windows_reach_back_over_passes(states: PrefixStates) -> None:
    """A state does not depend on how its tokens were cut into passes, the first ones included."""
    digests = digests_of([5, 6, 7])

    for num_tokens in (1, 2, 3):
        (image,) = states.after_pass(digests, num_tokens, 0)

        assert states.difference(image, digests, num_tokens, 1) == ""


def test_no_tokens_are_zero(layout: ArenaLayout, states: PrefixStates) -> None:
    """Before the first token every byte of every tensor is zero, rows for speculation included."""
    zero = np.zeros(layout.block.image_bytes, np.uint8)

    assert states.difference(zero, [NO_TOKENS], 0, 1) == ""
    for state, offset in zip(layout.block.states, layout.block.image_offsets, strict=True):
        zero[offset + state.nbytes - 1] = 1
        assert states.difference(zero, [NO_TOKENS], 0, 1) == state.name
        zero[offset + state.nbytes - 1] = 0


def test_every_flipped_bit_of_a_state_is_found(layout: ArenaLayout, states: PrefixStates) -> None:
    """A single wrong bit in any byte of a state is reported, with the state's name."""
    digests = digests_of([1, 2, 3, 4, 5])
    (image,) = states.after_pass(digests, 5, 0)

    for state, offset in zip(layout.block.states, layout.block.image_offsets, strict=True):
        found = set()
        for byte in range(offset, offset + state.nbytes):
            image[byte] ^= 1
            found.add(states.difference(image, digests, 5, 1))
            image[byte] ^= 1

        # Conv rows for speculation are no part of the state; the window comes first.
        assert found - {""} == {state.name}
        assert "" not in found or state.kind == "conv"


def test_other_tokens_have_another_state(states: PrefixStates) -> None:
    """A state belongs to all tokens before it: another first token is another state."""
    mine, theirs = digests_of([1, 2, 3, 4]), digests_of([9, 2, 3, 4])
    (image,) = states.after_pass(theirs, 4, 0)

    assert states.difference(image, mine, 4, 1) != ""
