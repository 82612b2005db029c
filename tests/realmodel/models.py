"""Tiny language models with random weights, made from configurations in code: the same in every process.

One of each way to keep states: Mamba-2 (every layer has a conv and a temporal state), Qwen3-Next (gated delta nets
between attention layers) and LFM2 (short convolutions, no temporal state, between attention layers).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers import (
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)
from transformers.cache_utils import LinearAttentionLayer

from statepool.layout import BlockLayout, ConvLayout
from statepool.models import ModelStates, model_layout, parse_model_config

VOCAB_SIZE = 61
_SEED = 20
_WIDE = 0.3
"""Standard deviation of the weights: wide enough that greedy decoding does not end in one token repeated."""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A model in evaluation mode, float32 on the CPU.

    Two processes get the same logits, bit for bit, if torch runs on the same number of threads in both.
    """

    network: PreTrainedModel
    """The model as its library makes it."""
    states: ModelStates
    """What statepool reads from the same configuration."""

    def layout(self, num_spec: int = 0, conv_layout: ConvLayout = ConvLayout.SD) -> BlockLayout:
        """Lays out a block with the state shape calculator."""
        return model_layout(self.states, num_spec=num_spec, conv_layout=conv_layout)

    def step(self, token: int, cache: DynamicCache) -> torch.Tensor:
        """Processes one token with the library's own cache.

        Returns:
            Logits of the next token, ``[VOCAB_SIZE]``.
        """
        name = "cache_params" if self.states.model_type == "mamba2" else "past_key_values"
        output = self.network(input_ids=torch.tensor([[token]]), use_cache=True, **{name: cache})
        logits: torch.Tensor = output.logits[0, 0]
        return logits

    def blank_cache(self) -> DynamicCache:
        """Makes a cache whose states are zero.

        A new cache of the library has no states instead, and then the first token takes the chunked scan, which rounds
        otherwise than the recurrent step of every later token.
        """
        cache = DynamicCache(config=self.network.config)
        self.step(0, cache)  # gives the states their shapes
        cache.reset()
        for layer in state_layers(cache).values():
            layer.has_previous_state[0] = True
        return cache

    def logits(self, tokens: Iterable[int]) -> torch.Tensor:
        """Runs the model alone, token by token: what every other way to run it must equal.

        Returns:
            ``[len(tokens), VOCAB_SIZE]``.
        """
        cache = self.blank_cache()
        return torch.stack([self.step(token, cache) for token in tokens])

    def decode(self, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
        """Decodes `count` tokens greedily with the model alone.

        Returns:
            The prompt and the decoded tokens, and the logits of all but the last, ``[tokens - 1, VOCAB_SIZE]``.
        """
        cache = self.blank_cache()
        tokens, logits = list(prompt), []
        for position in range(len(prompt) + count - 1):
            logits.append(self.step(tokens[position], cache))
            if position + 1 == len(tokens):
                tokens.append(int(logits[-1].argmax()))
        return tokens, torch.stack(logits)


def state_layers(cache: DynamicCache) -> dict[int, LinearAttentionLayer]:
    """Finds the layers of a cache that keep a state, by their index in the model."""
    return {index: layer for index, layer in enumerate(cache.layers) if isinstance(layer, LinearAttentionLayer)}


def _mamba2() -> PreTrainedModel:
    config = Mamba2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        num_hidden_layers=3,
        num_heads=6,
        head_dim=8,
        n_groups=2,
        state_size=10,
        conv_kernel=4,
        initializer_range=_WIDE,
        dtype="float32",
    )
    return Mamba2ForCausalLM(config)


def _qwen3_next() -> PreTrainedModel:
    config = Qwen3NextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=6,  # another size than the keys': a state laid out the wrong way round does not fit
        linear_conv_kernel_dim=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        initializer_range=_WIDE,
        dtype="float32",
    )
    return Qwen3NextForCausalLM(config)


def _lfm2() -> PreTrainedModel:
    config = Lfm2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=24,
        intermediate_size=32,
        block_auto_adjust_ff_dim=False,
        layer_types=["conv", "full_attention", "conv", "conv"],
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        conv_L_cache=3,
        initializer_range=_WIDE,
        dtype="float32",
    )
    return Lfm2ForCausalLM(config)


MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {"mamba2": _mamba2, "qwen3_next": _qwen3_next, "lfm2": _lfm2}
"""How to make each model, by its ``model_type``."""


@functools.cache
def build_model(name: str) -> TinyModel:
    """Makes a model of `MODELS`, once in a process; its weights depend on nothing but the name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        network = MODELS[name]().eval().requires_grad_(False)
        _draw_gates(network)
    return TinyModel(network, parse_model_config(network.config.to_dict()))


def _draw_gates(network: PreTrainedModel) -> None:
    """Makes temporal states be written strongly and forgotten slowly.

    With the library's own initial values a token is forgotten within a few steps or hardly written, so that a wrong
    temporal state could be lost in rounding.
    """
    for name, parameter in network.named_parameters():
        if name.endswith("A_log"):
            parameter.uniform_(-4, -1)
        elif name.endswith("dt_bias"):
            parameter.zero_()
