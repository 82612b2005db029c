"""Guarantee: converted states are the same model's, cut as the other pool cuts them; what is not defined is refused."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from statepool.convert import PoolStates, conv_segments, plan_conversion
from statepool.errors import LayoutMismatchError
from statepool.layout import BlockLayout, ConvLayout, Dtype, StateKind
from statepool.models import ModelStates, model_layout

KERNEL = 4
FAMILIES: Mapping[str, tuple[Mapping[str, int], list[list[int]]]] = {
    "mamba1": ({"intermediate_size": 24, "state_size": 3, "conv_kernel": KERNEL}, [[24]]),
    "mamba2": (
        {
            "intermediate_size": 48,
            "n_groups": 4,
            "num_heads": 12,
            "head_dim": 4,
            "state_size": 3,
            "conv_kernel": KERNEL,
        },
        [[48, 12, 12]],
    ),
    "short_conv": ({"intermediate_size": 24, "conv_kernel": KERNEL}, [[24]]),
    "gated_delta_net": (
        {"num_k_heads": 4, "num_v_heads": 12, "head_k_dim": 3, "head_v_dim": 2, "conv_kernel_size": KERNEL},
        [[12, 12, 24]],
    ),
    "kda": (
        {"num_heads": 12, "head_dim": 4, "num_k_heads": 4, "head_k_dim": 3, "conv_kernel_size": KERNEL},
        [[48], [12], [12]],
    ),
    "kda_fused": ({"num_heads": 4, "head_dim": 3, "conv_kernel_size": KERNEL}, [[12, 12, 12]]),
    "linear_attention": ({"num_heads": 12, "head_dim": 3}, []),
}
"""Parameters of small models, and the parts of each conv state, all divisible by 1, 2 and 4."""
SPECULATES = {"mamba2", "gated_delta_net", "kda_fused"}
LAYERS = (1, 3)

Parts = list[list[int]]
"""Sizes of the parts of each conv state of a layer."""
Whole = dict[str, NDArray[np.uint8]]
"""Each state of the whole model: conv ``[kernel - 1, dim, itemsize]``, temporal ``[heads, ..., itemsize]``."""


def _pool(family: str, parameters: Mapping[str, int], tp: int, num_spec: int, conv_layout: ConvLayout) -> PoolStates:
    model = ModelStates(family, family, parameters, LAYERS, Dtype.BFLOAT16)
    layout = model_layout(model, tp_size=tp, num_spec=num_spec, conv_layout=conv_layout.value)
    return PoolStates(layout=layout, tp_size=tp, num_spec=num_spec, family=family, parameters=parameters)


def _whole(pool: PoolStates, seed: int) -> Whole:
    """Draws the states of a model that is not divided, in SD and without rows for drafts."""
    assert (pool.tp_size, pool.num_spec, pool.layout.conv_layout) == (1, 0, ConvLayout.SD)
    random = np.random.default_rng(seed)
    return {s.name: random.integers(0, 256, (*s.shape, s.dtype.itemsize), np.uint8) for s in pool.layout.states}


def _cut(
    whole: Whole, pool: PoolStates, parts: list[list[int]], replicated: int | None, rank: int
) -> NDArray[np.uint8]:
    """Cuts the image of a rank out of the whole, part by part: as the engine's weight loaders cut projections."""
    image = np.zeros(pool.layout.image_bytes, np.uint8)
    for state, start in zip(pool.layout.states, pool.layout.image_offsets, strict=True):
        values = whole[state.name]
        if state.kind is StateKind.TEMPORAL:
            cut = np.split(values, pool.tp_size)[rank]
        else:
            sizes = parts[int(state.name.rpartition(".")[2])]
            pieces = np.split(values, np.cumsum(sizes)[:-1], axis=1)
            cut = np.concatenate(
                [
                    piece if replicated == size else np.split(piece, pool.tp_size, axis=1)[rank]
                    for piece, size in zip(pieces, sizes, strict=True)
                ],
                axis=1,
            )
            spare = pool.num_spec if pool.family in SPECULATES else 0
            cut = np.concatenate([cut, np.zeros((spare, *cut.shape[1:]), np.uint8)])
            cut = cut.swapaxes(0, 1) if pool.layout.conv_layout is ConvLayout.DS else cut
        assert cut.shape[:-1] == state.shape
        image[start : start + state.nbytes] = cut.ravel()
    return image


def _scribbled(image: NDArray[np.uint8], pool: PoolStates) -> NDArray[np.uint8]:
    """Writes into the rows for drafts, which mean nothing."""
    image = image.copy()
    for state, start in zip(pool.layout.states, pool.layout.image_offsets, strict=True):
        if state.kind is StateKind.CONV and pool.num_spec and pool.family in SPECULATES:
            rows = image[start : start + state.nbytes].reshape(*state.shape, -1)
            rows = rows.swapaxes(0, 1) if pool.layout.conv_layout is ConvLayout.DS else rows
            rows[-pool.num_spec :] = 0xAA
    return image


def _converted(source: PoolStates, target: PoolStates, images: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    conversion = plan_conversion(source, target)
    made = []
    for rank in range(target.tp_size):
        made.append(np.zeros(target.layout.image_bytes, np.uint8))
        for needed in conversion.source_ranks(rank):
            conversion.place(needed, images[needed], rank, made[-1])
    return made


pools = st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 3), st.sampled_from(ConvLayout))


@given(family=st.sampled_from(sorted(FAMILIES)), have=pools, want=pools, seed=st.integers(0, 2**32))
def test_states_are_those_of_the_whole_model(
    family: str, have: tuple[int, int, ConvLayout], want: tuple[int, int, ConvLayout], seed: int
) -> None:
    """From any ranks, speculative tokens and conv layout to any other, by heads and by parts; or as it is."""
    parameters, parts = FAMILIES[family]
    source, target = (
        _pool(family, parameters, tp, spec if family in SPECULATES else 0, layout) for tp, spec, layout in (have, want)
    )
    whole = _whole(_pool(family, parameters, 1, 0, ConvLayout.SD), seed)
    images = [_scribbled(_cut(whole, source, parts, None, rank), source) for rank in range(source.tp_size)]

    made = _converted(source, target, images)

    for rank in range(target.tp_size):
        expected = images[rank] if source == target else _cut(whole, target, parts, None, rank)
        assert np.array_equal(made[rank], expected)


@given(have=st.sampled_from([1, 2, 4]), want=st.sampled_from([1, 2, 4]))
def test_one_group_is_copied_to_every_rank(have: int, want: int) -> None:
    """The B and C of a single group are whole on every rank, whichever rank they come from."""
    parameters = {**FAMILIES["mamba2"][0], "n_groups": 1}
    parts, replicated = [[48, 3, 3]], 3
    source, target = (_pool("mamba2", parameters, tp, 0, ConvLayout.SD) for tp in (have, want))
    whole = _whole(_pool("mamba2", parameters, 1, 0, ConvLayout.SD), 1)
    images = [_cut(whole, source, parts, replicated, rank) for rank in range(have)]

    made = _converted(source, target, images)

    for rank in range(want):
        assert np.array_equal(made[rank], _cut(whole, target, parts, replicated, rank))


def test_ranks_read_no_more_than_they_need() -> None:
    """With twice as many ranks each needs one of the others, with half as many two."""
    parameters = FAMILIES["mamba2"][0]
    two, four = (_pool("mamba2", parameters, tp, 0, ConvLayout.SD) for tp in (2, 4))

    assert [plan_conversion(two, four).source_ranks(rank) for rank in range(4)] == [[0], [0], [1], [1]]
    assert [plan_conversion(four, two).source_ranks(rank) for rank in range(2)] == [[0, 1], [2, 3]]


def test_what_is_not_defined_is_refused() -> None:
    """Other models, several groups on more ranks, fused parts of different sizes, custom states on other ranks."""
    mamba2, kda = FAMILIES["mamba2"][0], {**FAMILIES["kda"][0]}
    sd = ConvLayout.SD
    one = _pool("mamba2", mamba2, 1, 0, sd)
    kernel = _pool("mamba2", {**mamba2, "conv_kernel": 5}, 1, 0, sd)
    custom = dataclasses.replace(one, family="custom", parameters={"num_spec": 0})
    three_groups = {**mamba2, "n_groups": 3}
    refused = {
        "conv_kernel": (one, kernel),
        "is not": (one, _pool("mamba1", FAMILIES["mamba1"][0], 1, 0, sd)),
        "different states": (one, dataclasses.replace(one, layout=_without_a_state(one.layout))),
        "n_groups": (_pool("mamba2", three_groups, 1, 0, sd), _pool("mamba2", three_groups, 4, 0, sd)),
        "no known order": (_pool("kda_fused", kda, 1, 0, sd), _pool("kda_fused", kda, 2, 0, sd)),
        "custom": (custom, dataclasses.replace(custom, tp_size=2)),
    }
    for why, (source, target) in refused.items():
        with pytest.raises(LayoutMismatchError, match=why):
            plan_conversion(source, target)
    with pytest.raises(ValueError, match="linear_attention"):
        conv_segments("linear_attention", {}, 0, 1)


def _without_a_state(layout: BlockLayout) -> BlockLayout:
    return BlockLayout.of(layout.states[:-1], layout.conv_layout)
