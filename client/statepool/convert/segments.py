"""What the dimension of a conv state is made of, and how tensor parallelism divides each part.

A fused conv state is several projections side by side. Each is divided among the ranks by itself, so that a rank's
dimension is not a run of the whole model's: with two ranks it is half of x, half of B and half of C.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a dimension."""

    size: int
    """Elements in the whole model."""
    is_replicated: bool = False
    """Whether every rank has all of it, rather than an equal share."""

    def share(self, tp_size: int) -> int:
        """Counts the elements of one rank.

        Raises:
            ValueError: It cannot be divided.
        """
        if self.is_replicated:
            return self.size
        if self.size % tp_size:
            raise ValueError(f"{self.size} is not divisible by {tp_size}")
        return self.size // tp_size


def conv_segments(family: str, parameters: Mapping[str, int], index: int, tp_size: int) -> tuple[Segment, ...]:
    """Tells what the dimension of a conv state is made of.

    Args:
        family: A key of `statepool.shapes.FAMILIES`.
        parameters: Its parameters.
        index: Which of a layer's conv states.
        tp_size: Tensor-parallel ranks.

    Raises:
        ValueError: It is not defined: an unknown family, groups that tp_size neither divides nor that are one, or fused
            parts of different sizes in no known order.
    """
    parts = _PARTS.get(family)
    if parts is None:
        raise ValueError(f"it is not known what conv states of {family} are made of")
    return parts(parameters, index, tp_size)


def _whole(parameters: Mapping[str, int], _index: int, _tp_size: int) -> tuple[Segment, ...]:
    return (Segment(parameters["intermediate_size"]),)


def _mamba2(parameters: Mapping[str, int], _index: int, tp_size: int) -> tuple[Segment, ...]:
    """x, B, C. One group is copied to every rank; how several would be spread over more ranks is nowhere defined."""
    groups, state_size = parameters["n_groups"], parameters["state_size"]
    if groups % tp_size and groups != 1:
        raise ValueError(f"n_groups: {groups} is neither 1 nor divisible by {tp_size}")
    group = Segment(groups * state_size, is_replicated=groups == 1)
    return Segment(parameters["intermediate_size"]), group, group


def _gated_delta_net(parameters: Mapping[str, int], _index: int, _tp_size: int) -> tuple[Segment, ...]:
    """q, k, v."""
    key = Segment(parameters["head_k_dim"] * parameters["num_k_heads"])
    return key, key, Segment(parameters["head_v_dim"] * parameters["num_v_heads"])


def _kda(parameters: Mapping[str, int], index: int, _tp_size: int) -> tuple[Segment, ...]:
    """One state each; the first is as wide as the heads, the others as the key heads."""
    return (_kda_parts(parameters)[index],)


def _kda_fused(parameters: Mapping[str, int], _index: int, _tp_size: int) -> tuple[Segment, ...]:
    parts = _kda_parts(parameters)
    if len(set(parts)) > 1:  # the engine's order of the parts would matter, and is not published
        raise ValueError("the fused conv states of heads and key heads of different sizes are in no known order")
    return parts


def _kda_parts(parameters: Mapping[str, int]) -> tuple[Segment, Segment, Segment]:
    heads, head_dim = parameters["num_heads"], parameters["head_dim"]
    key = Segment(parameters.get("num_k_heads", heads) * parameters.get("head_k_dim", head_dim))
    return Segment(heads * head_dim), key, key


_PARTS: Mapping[str, Callable[[Mapping[str, int], int, int], tuple[Segment, ...]]] = {
    "mamba1": _whole,
    "mamba2": _mamba2,
    "short_conv": _whole,
    "gated_delta_net": _gated_delta_net,
    "kda": _kda,
    "kda_fused": _kda_fused,
}
