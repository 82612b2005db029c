"""The arithmetic: one class method per family, under the field's own names."""

from typing import TypeAlias

from statepool.layout import ConvLayout
from statepool.shapes.checks import checked
from statepool.shapes.conv_layout import ConvLayoutName, resolve_conv_layout

StateShapes: TypeAlias = tuple[tuple[int, ...], ...]
"""Shapes of one layer's states on one rank: conv states first, the temporal state last."""


def _div(numerator: int, denominator: int) -> int:
    if numerator % denominator:
        raise ValueError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def _conv(dim: int, length: int, conv_layout: ConvLayoutName | None) -> tuple[int, int]:
    return (dim, length) if resolve_conv_layout(conv_layout) is ConvLayout.DS else (length, dim)


class MambaStateShapeCalculator:
    """Calculates state shapes, one class method per family.

    Every method takes the tensor-parallel size and whole-model sizes, and returns the shapes of one rank.

    Raises:
        ValueError: From every method: an argument is no integer, is out of range (it is named then), or the
            tensor-parallel size does not divide what it must ("30 is not divisible by 4").
    """

    @classmethod
    @checked
    def linear_attention_state_shape(
        cls, num_heads: int, tp_size: int, head_dim: int, *, conv_layout: ConvLayoutName | None = None
    ) -> StateShapes:
        """Gives ``(heads, head_dim, head_dim)``; heads are divided rounding down. There is no conv state."""
        resolve_conv_layout(conv_layout)
        return ((num_heads // tp_size, head_dim, head_dim),)

    @classmethod
    @checked
    def mamba1_state_shape(
        cls,
        tp_world_size: int,
        intermediate_size: int,
        state_size: int,
        conv_kernel: int,
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives a conv state of ``conv_kernel - 1`` rows and ``(dim, state_size)``."""
        dim = _div(intermediate_size, tp_world_size)
        return _conv(dim, conv_kernel - 1, conv_layout), (dim, state_size)

    @classmethod
    @checked
    def mamba2_state_shape(
        cls,
        tp_world_size: int,
        intermediate_size: int,
        n_groups: int,
        num_heads: int,
        head_dim: int,
        state_size: int,
        conv_kernel: int,
        num_spec: int = 0,
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives a conv state over x, B and C (groups replicated where needed) and ``(heads, head_dim, state_size)``."""
        groups = n_groups + cls.extra_groups_for_head_shards(n_groups, tp_world_size)
        dim = _div(intermediate_size + 2 * groups * state_size, tp_world_size)
        conv = _conv(dim, conv_kernel - 1 + num_spec, conv_layout)
        return conv, (_div(num_heads, tp_world_size), head_dim, state_size)

    @classmethod
    @checked
    def short_conv_state_shape(
        cls,
        tp_world_size: int,
        intermediate_size: int,
        conv_kernel: int,
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives a conv state of ``conv_kernel - 1`` rows. There is no temporal state."""
        return (_conv(_div(intermediate_size, tp_world_size), conv_kernel - 1, conv_layout),)

    @classmethod
    @checked
    def gated_delta_net_state_shape(
        cls,
        tp_world_size: int,
        num_k_heads: int,
        num_v_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_kernel_size: int,
        num_spec: int = 0,
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives one conv state over q, k and v, and ``(v_heads, head_v_dim, head_k_dim)``."""
        dim = _div(2 * head_k_dim * num_k_heads + head_v_dim * num_v_heads, tp_world_size)
        conv = _conv(dim, conv_kernel_size - 1 + num_spec, conv_layout)
        return conv, (_div(num_v_heads, tp_world_size), head_v_dim, head_k_dim)

    @classmethod
    @checked
    def kda_state_shape(
        cls,
        tp_world_size: int,
        num_heads: int,
        head_dim: int,
        num_k_heads: int | None = None,
        head_k_dim: int | None = None,
        conv_kernel_size: int = 4,
        num_spec: int = 0,  # noqa: ARG003 - accepted, but these conv states have no speculative rows
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives three conv states (two of them over the key dimensions) and ``(heads, head_dim, head_dim)``."""
        v_dim, k_dim = _kda_dims(num_heads, head_dim, num_k_heads, head_k_dim)
        v_conv = _conv(_div(v_dim, tp_world_size), conv_kernel_size - 1, conv_layout)
        k_conv = _conv(_div(k_dim, tp_world_size), conv_kernel_size - 1, conv_layout)
        return v_conv, k_conv, k_conv, (_div(num_heads, tp_world_size), head_dim, head_dim)

    @classmethod
    @checked
    def kda_fused_state_shape(
        cls,
        tp_world_size: int,
        num_heads: int,
        head_dim: int,
        num_k_heads: int | None = None,
        head_k_dim: int | None = None,
        conv_kernel_size: int = 4,
        num_spec: int = 0,
        *,
        conv_layout: ConvLayoutName | None = None,
    ) -> StateShapes:
        """Gives the three conv states of kda as one, with num_spec extra rows, and ``(heads, head_dim, head_dim)``."""
        v_dim, k_dim = _kda_dims(num_heads, head_dim, num_k_heads, head_k_dim)
        conv = _conv(_div(v_dim + 2 * k_dim, tp_world_size), conv_kernel_size - 1 + num_spec, conv_layout)
        return conv, (_div(num_heads, tp_world_size), head_dim, head_dim)

    @classmethod
    @checked
    def extra_groups_for_head_shards(cls, ngroups: int, tp_size: int) -> int:
        """Gives the groups to add so that every rank has one: ``tp_size - ngroups`` unless tp_size divides ngroups."""
        return tp_size - ngroups if ngroups % tp_size else 0


def _kda_dims(num_heads: int, head_dim: int, num_k_heads: int | None, head_k_dim: int | None) -> tuple[int, int]:
    k_heads = num_heads if num_k_heads is None else num_k_heads
    return num_heads * head_dim, k_heads * (head_dim if head_k_dim is None else head_k_dim)
