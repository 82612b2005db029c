"""``statepool shapes``: what states a model keeps, how large a block is, and how many fit."""

import json
from collections import Counter
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from statepool.cli.failure import CommandError
from statepool.cli.options import ByteSize
from statepool.layout import Arrangement, BlockLayout, ConvLayout, StateKind, StateSpec, blocks_that_fit
from statepool.models import ModelStates, find_model_config, model_layout, read_model_config
from statepool.units import format_bytes


def shapes(
    *,
    model_config: str,
    tp_size: int = 1,
    num_spec: int = 0,
    conv_layout: ConvLayout | None = None,
    conv_dtype: str = "auto",
    temporal_dtype: str = "auto",
    arrangement: Arrangement = Arrangement.BLOCK_MAJOR,
    memory: ByteSize | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show what states a model keeps on one rank, how large a block is, and how many blocks fit.

    Args:
        model_config: The name of a bundled model, else a model's config.json or its folder.
        tp_size: Tensor-parallel ranks.
        num_spec: Speculative tokens per step.
        conv_layout: Order of a conv state's dimensions. Default: the engine's VLLM_SSM_CONV_STATE_LAYOUT, else SD.
        conv_dtype: Element type of conv states; auto is the model's.
        temporal_dtype: Element type of temporal states; auto is what the model asks for, else as conv.
        arrangement: Order of blocks and tensors in the arena.
        memory: Bytes for one rank's arena, such as 40GiB.
        as_json: Print one JSON object instead of a table.
    """
    try:
        model = read_model_config(find_model_config(model_config))
    except OSError as error:
        raise CommandError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(str(error)) from error
    try:
        layout = model_layout(
            model,
            tp_size=tp_size,
            num_spec=num_spec,
            conv_layout=conv_layout,
            conv_dtype=conv_dtype,
            temporal_dtype=temporal_dtype,
        )
    except ValueError as error:
        raise CommandError(f"{model_config}: {error}") from error
    block_count = None if memory is None else blocks_that_fit(layout, memory, arrangement)
    facts = _facts(model, layout) | {
        "tp_size": tp_size,
        "num_spec": num_spec,
        "arrangement": arrangement.value,
        "memory_bytes": memory,
        "block_count": block_count,
    }
    if as_json:
        # Like the table, it ends quietly where the reader of a pipe has had enough.
        Console().out(json.dumps(facts), highlight=False)
    else:
        _print_table(model, layout, memory, block_count)


def _distinct(layout: BlockLayout) -> Counter[StateSpec]:
    """Counts the states that differ in nothing but name and layer; each is stood for by a nameless one."""
    return Counter(StateSpec("", 0, state.kind, state.dtype, state.shape) for state in layout.states)


def _facts(model: ModelStates, layout: BlockLayout) -> dict[str, object]:
    return {
        "model_type": model.model_type,
        "family": model.family,
        "parameters": dict(model.parameters),
        "model_dtype": model.dtype,
        "state_layers": list(model.state_layers),
        "conv_layout": layout.conv_layout.value,
        "tensors": [
            {
                "kind": state.kind.value,
                "shape": list(state.shape),
                "dtype": state.dtype.value,
                "bytes": state.nbytes,
                "count": count,
            }
            for state, count in _distinct(layout).items()
        ],
        "block_bytes": layout.image_bytes,
        "fingerprint": layout.fingerprint,
    }


def _print_table(model: ModelStates, layout: BlockLayout, memory: int | None, block_count: int | None) -> None:
    console = Console(highlight=False)
    table = Table(
        "kind", "shape", "dtype", title=f"{model.model_type}: {model.family}, {len(model.state_layers)} state layers"
    )
    for column in ("bytes", "count", "total"):
        table.add_column(column, justify="right")
    for state, count in _distinct(layout).items():
        shape = str(list(state.shape)) + (f" {layout.conv_layout}" if state.kind is StateKind.CONV else "")
        table.add_row(
            state.kind, shape, state.dtype, f"{state.nbytes:,}", str(count), format_bytes(count * state.nbytes)
        )
    console.print(table)
    lines = [f"block        {layout.image_bytes:,} bytes ({format_bytes(layout.image_bytes)})"]
    if memory is not None:
        lines.append(f"blocks       {block_count:,} fit into {format_bytes(memory)}, the null block included")
    lines.append(f"fingerprint  {layout.fingerprint}")
    console.print("\n".join(lines), soft_wrap=True)
