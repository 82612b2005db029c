"""Guarantee: the shape calculator gives exactly the reference's shapes and errors, and refuses nonsense by name."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool.layout import ConvLayout, StateKind
from statepool.shapes import (
    FAMILIES,
    MAX_PARAMETER,
    MambaStateShapeCalculator,
    StateShapes,
    calculate,
    get_conv_state_layout,
    is_conv_state_dim_first,
)

VECTORS = Path(__file__).parent.parent / "data" / "vectors" / "state_shapes.json"


class Case(TypedDict):
    """One expected result of the reference implementation."""

    family: str
    conv_layout: ConvLayout
    params: dict[str, int | None]
    shapes: list[list[int]] | None
    error: str | None


CASES: list[Case] = json.loads(VECTORS.read_text())
GOOD = [case for case in CASES if case["error"] is None]
BAD = [case for case in CASES if case["error"] is not None]


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["family"])
def test_shapes_equal_the_reference(case: Case) -> None:
    """Every good vector gives its shapes, by name and by class method."""
    method = getattr(MambaStateShapeCalculator, f"{case['family']}_state_shape")

    by_name = calculate(case["family"], case["params"], case["conv_layout"])
    by_method = method(**case["params"], conv_layout=case["conv_layout"])

    assert by_name == by_method == tuple(tuple(shape) for shape in case["shapes"] or [])


@pytest.mark.parametrize("case", BAD, ids=lambda case: case["family"])
def test_errors_equal_the_reference(case: Case) -> None:
    """Every bad vector gives its message."""
    with pytest.raises(ValueError, match="is not divisible by") as caught:
        calculate(case["family"], case["params"], case["conv_layout"])

    assert str(caught.value) == case["error"]


SIZES = st.integers(1, 4096)


@st.composite
def _arguments(draw: st.DrawFn) -> tuple[str, dict[str, int | None]]:
    """Draws a family and arguments that its tensor-parallel size divides."""
    name = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[name]
    tp_size = draw(st.sampled_from([1, 2, 3, 8]))
    arguments: dict[str, int | None] = {key: tp_size * draw(SIZES) for key in family.parameters}
    return name, arguments | {family.tp_parameter: tp_size}


@given(_arguments())
def test_ds_is_sd_with_conv_dimensions_swapped(drawn: tuple[str, dict[str, int | None]]) -> None:
    """The conv layout swaps the dimensions of conv states and nothing else."""
    name, arguments = drawn

    rows_first = calculate(name, arguments, "SD")
    dim_first = calculate(name, arguments, "DS")

    for kind, sd, ds in zip(FAMILIES[name].kinds, rows_first, dim_first, strict=True):
        assert ds == (sd[::-1] if kind is StateKind.CONV else sd)


@given(_arguments(), st.integers(1, 16))
def test_num_spec_adds_rows_where_the_family_says_so(drawn: tuple[str, dict[str, int | None]], num_spec: int) -> None:
    """Speculative tokens lengthen the conv states of some families by one row each, and change nothing else."""
    name, arguments = drawn
    accepts = "num_spec" in FAMILIES[name].parameters

    before = calculate(name, arguments | ({"num_spec": 0} if accepts else {}), "SD")
    after = calculate(name, arguments | ({"num_spec": num_spec} if accepts else {}), "SD")

    extra = num_spec if FAMILIES[name].extends_conv_states else 0
    for kind, old, new in zip(FAMILIES[name].kinds, before, after, strict=True):
        assert new == ((old[0] + extra, old[1]) if kind is StateKind.CONV else old)


@given(
    family=st.one_of(st.sampled_from(sorted(FAMILIES)), st.text(max_size=8)),
    parameters=st.dictionaries(
        st.one_of(
            st.sampled_from(sorted({key for family in FAMILIES.values() for key in family.parameters})), st.text()
        ),
        st.one_of(st.none(), st.integers(), st.sampled_from([0, 10**5000, -(10**5000)]), st.booleans(), st.floats()),
    ),
)
def test_any_parameters_give_shapes_or_a_value_error(family: str, parameters: dict[str, int | None]) -> None:
    """No input ends in another exception, a message too long for a wire, or a dimension that leaves 64 bits."""
    message = ""
    shapes: StateShapes = ()
    try:
        shapes = calculate(family, parameters, "SD")
    except ValueError as error:
        message = str(error)

    assert len(message) < 1000
    assert all(0 <= size < 2**63 for shape in shapes for size in shape)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_extreme_parameters_stay_in_64_bits(name: str, data: st.DataObject) -> None:
    """The largest parameters allowed give dimensions that a 64-bit integer holds."""
    values = st.sampled_from([1, MAX_PARAMETER - 1, MAX_PARAMETER])
    arguments: dict[str, int | None] = {key: data.draw(values) for key in FAMILIES[name].parameters}
    arguments[FAMILIES[name].tp_parameter] = 1

    shapes = calculate(name, arguments, "SD")

    assert all(0 <= size < 2**63 for shape in shapes for size in shape)


MAMBA1 = {"tp_world_size": 1, "intermediate_size": 8, "state_size": 4, "conv_kernel": 4}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tp_world_size": 0}, "tp_world_size"),
        ({"tp_world_size": -1}, "tp_world_size"),
        ({"tp_world_size": True}, "tp_world_size"),
        ({"conv_kernel": 0}, "conv_kernel"),
        ({"state_size": -1}, "state_size"),
        ({"state_size": 10**5000}, "state_size"),
        ({"state_size": 2.0}, "state_size"),
        ({"state_size": "2"}, "state_size"),
        ({"state_size": None}, "state_size"),
        ({"n_groups": 1}, "n_groups"),
    ],
)
def test_a_bad_parameter_is_named(change: dict[str, int], named: str) -> None:
    """Out of range, of a wrong type or unknown: the message starts with the parameter."""
    with pytest.raises(ValueError, match=f"^{named}: "):
        calculate("mamba1", {**MAMBA1, **change}, "SD")


@pytest.mark.parametrize("missing", MAMBA1)
def test_a_missing_parameter_is_named(missing: str) -> None:
    """A parameter without default must be given."""
    with pytest.raises(ValueError, match=f"^{missing}: missing"):
        calculate("mamba1", {key: value for key, value in MAMBA1.items() if key != missing}, "SD")


def test_an_unknown_family_lists_the_known_ones() -> None:
    """The message for an unknown family helps to find the right one."""
    with pytest.raises(ValueError, match=r"'transformer' is unknown.*gated_delta_net"):
        calculate("transformer", {}, "SD")


def test_numpy_integers_do_not_wrap_around() -> None:
    """Narrow numpy integers are calculated with as Python integers."""
    large = np.int32(2**20)

    shapes = MambaStateShapeCalculator.gated_delta_net_state_shape(1, large, large, large, large, 4, conv_layout="SD")  # type: ignore[arg-type]

    assert shapes[0] == (3, 3 * 2**40)


@pytest.mark.parametrize(("ngroups", "tp_size", "extra"), [(8, 4, 0), (1, 8, 7), (2, 8, 6), (8, 3, -5), (0, 4, 0)])
def test_extra_groups(ngroups: int, tp_size: int, extra: int) -> None:
    """Groups are added only where the ranks do not divide them."""
    assert MambaStateShapeCalculator.extra_groups_for_head_shards(ngroups, tp_size) == extra


def test_an_unknown_conv_layout_is_refused_even_without_conv_states() -> None:
    """A bad layout is an error for every family."""
    with pytest.raises(ValueError, match=r"^conv_layout: must be SD or DS, got 'XX'"):
        MambaStateShapeCalculator.linear_attention_state_shape(8, 1, 64, conv_layout="XX")  # type: ignore[arg-type]


def _layout_in(environment: dict[str, str]) -> str:
    """Asks a fresh process for its conv layout, which is read once per process."""
    code = (
        "from statepool.shapes import *\n"
        "try: print(get_conv_state_layout(), is_conv_state_dim_first())\n"
        "except ValueError as error: print(error)"
    )
    unset = {key: value for key, value in os.environ.items() if not key.endswith(("CONV_LAYOUT", "STATE_LAYOUT"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=unset | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "answer"),
    [
        ({}, "SD False"),
        ({"VLLM_SSM_CONV_STATE_LAYOUT": "DS"}, "DS True"),
        ({"VLLM_SSM_CONV_STATE_LAYOUT": "DS", "STATEPOOL_CONV_LAYOUT": "SD"}, "SD False"),
        ({"VLLM_SSM_CONV_STATE_LAYOUT": "DS", "STATEPOOL_CONV_LAYOUT": ""}, "DS True"),
        ({"STATEPOOL_CONV_LAYOUT": "dim"}, "STATEPOOL_CONV_LAYOUT: must be SD or DS, got 'dim'"),
    ],
)
def test_the_environment_decides_the_conv_layout(environment: dict[str, str], answer: str) -> None:
    """Our own variable comes before the engine's, which comes before SD; a bad value is an error."""
    assert _layout_in(environment) == answer


def test_the_default_conv_layout_is_the_process_wide_one() -> None:
    """Calculating without a layout means the layout that the process reports."""
    assert calculate("mamba1", MAMBA1) == calculate("mamba1", MAMBA1, get_conv_state_layout())
    assert is_conv_state_dim_first() == (get_conv_state_layout() is ConvLayout.DS)
