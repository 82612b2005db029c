"""A worker's half of align mode: a real model whose states stand in the blocks of a pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

from realmodel.models import TinyModel, state_layers
from statepool.layout import BlockLayout, ConvLayout, StateKind


class StateRunner:
    """Runs a model on states that it reads from blocks and writes back to blocks.

    With the running block and the S speculative ones after it called ``r[0] … r[S]``, the state after accepting ``a``
    tokens of a step stands in

    * conv: rows ``[a - 1 : a - 1 + kernel - 1]`` of ``r[0]``, the last inputs of the convolution, oldest first;
    * temporal: ``r[a - 1]``.

    A step reads the place of ``a`` = `num_accepted` of the step before, and fills the places of ``a`` = 1 … 1 + drafts.

    Every token, a prompt's too, takes the recurrent step alone, with the states in the library's own cache. So each
    token is computed by the same operations on tensors of the same shapes however the tokens are cut into steps,
    and its logits are bit-equal to the model's alone as soon as the states are. Of the library's conv columns
    (``kernel`` of them) the oldest is never read again: blocks do not hold it, and it is loaded as zero.

    Keys and values of attention layers are no states: the runner keeps them per request, and cuts them to
    `num_computed` tokens when a step begins, which drops those of rejected drafts.
    """

    def __init__(self, model: TinyModel, views: Mapping[str, torch.Tensor], layout: BlockLayout) -> None:
        """Builds the runner.

        Args:
            model: The model.
            views: State name to ``[block_count, *shape]``, as `statepool.torch.state_views` gives them.
            layout: Made from the same model.
        """
        self._model = model
        self._states = _block_states(model, views, layout)
        self._caches: dict[str, DynamicCache] = {}

    def forward(
        self,
        request: str,
        tokens: Sequence[int],
        *,
        num_computed: int,
        running_block_ids: Sequence[int],
        num_accepted: int = 1,
        num_drafts: int = 0,
    ) -> torch.Tensor:
        """Processes the tokens of one step.

        Args:
            request: Whose keys and values to use.
            tokens: All tokens of the step, the drafts last.
            num_computed: Tokens before them.
            running_block_ids: The running block and the speculative ones after it; at least ``1 + num_drafts`` and
                `num_accepted`.
            num_accepted: Accepted tokens of the step before, 1 where a copy has already taken them into account.
            num_drafts: Drafts among the tokens.

        Returns:
            Logits after each token, ``[len(tokens), VOCAB_SIZE]``.

        Raises:
            ValueError: The request has not the keys and values of `num_computed` tokens.
        """
        cache = self._cache(request, num_computed)
        places = [(self._states[index], layer) for index, layer in state_layers(cache).items()]
        for states, layer in places:
            states.load(layer, running_block_ids, num_accepted)
        logits = []
        for accepted, token in enumerate(tokens, start=2 + num_drafts - len(tokens)):
            logits.append(self._model.step(token, cache))
            for states, layer in places if accepted > 0 else ():
                states.store(layer, running_block_ids, accepted)
        return torch.stack(logits)

    def reuse_attention(self, source: str, request: str) -> None:
        """Lets a new request begin with the keys and values of another, for a prefix that both share."""
        cache = self._model.blank_cache()
        for layer, kept in zip(cache.layers, self._caches[source].layers, strict=True):
            if isinstance(layer, DynamicLayer) and isinstance(kept, DynamicLayer):
                layer.update(kept.keys, kept.values)
        self._caches[request] = cache

    def _cache(self, request: str, num_tokens: int) -> DynamicCache:
        """Finds the cache of a request, its keys and values cut to a number of tokens."""
        if request not in self._caches:
            self._caches[request] = self._model.blank_cache()
        for layer in self._caches[request].layers:
            if isinstance(layer, DynamicLayer):
                kept = layer.get_seq_length()
                if kept < num_tokens:
                    raise ValueError(f"num_computed: keys and values of {kept} tokens, not of {num_tokens}")
                layer.crop(num_tokens - kept)
        return self._caches[request]


@dataclass(frozen=True, slots=True, eq=False)
class _BlockStates:
    """The states of one layer in all blocks, turned as the library holds them."""

    conv: torch.Tensor
    """``[block_count, dim, rows]``."""
    temporal: torch.Tensor | None
    """``[block_count, *shape]``; None where the layer has no temporal state."""

    def load(self, layer: LinearAttentionLayer, running_block_ids: Sequence[int], accepted: int) -> None:
        """Takes the state after `accepted` tokens of a step from the blocks."""
        window, columns = self._window(layer, running_block_ids[0], accepted)
        layer.conv_states[0].zero_()
        columns.copy_(window)
        if self.temporal is not None:
            layer.recurrent_states[0].copy_(self.temporal[running_block_ids[accepted - 1]])

    def store(self, layer: LinearAttentionLayer, running_block_ids: Sequence[int], accepted: int) -> None:
        """Puts the state to where it is looked for when `accepted` tokens of the step are accepted."""
        window, columns = self._window(layer, running_block_ids[0], accepted)
        window.copy_(columns)
        if self.temporal is not None:
            self.temporal[running_block_ids[accepted - 1]].copy_(layer.recurrent_states[0][0])

    def _window(self, layer: LinearAttentionLayer, block_id: int, accepted: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Finds the conv window in its block and in the library's cache, both ``[dim, kernel - 1]``."""
        columns = layer.conv_states[0][0, :, 1:]
        return self.conv[block_id, :, accepted - 1 : accepted - 1 + columns.shape[1]], columns


def _block_states(model: TinyModel, views: Mapping[str, torch.Tensor], layout: BlockLayout) -> dict[int, _BlockStates]:
    conv, temporal = {}, {}
    for state in layout.states:
        view = views[state.name]
        if state.kind is StateKind.CONV:
            conv[state.layer] = view if layout.conv_layout is ConvLayout.DS else view.transpose(1, 2)
        else:
            # Gated delta nets: the library has keys before values, the field's layout the other way round.
            temporal[state.layer] = view.transpose(2, 3) if model.states.family == "gated_delta_net" else view
    return {layer: _BlockStates(conv[layer], temporal.get(layer)) for layer in conv}
