"""An engine's loop for one request: greedy decoding with drafts, on a sequence and a runner."""

from collections.abc import Sequence

import torch

from realmodel.runner import StateRunner
from realmodel.sequence import AlignSequence


class Generation:
    """One request from its admission on; every call is one step of the engine."""

    def __init__(self, runner: StateRunner, sequence: AlignSequence, request: str, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        """The prompt and what was decoded; the last token has not been computed yet once the prompt has."""
        self.logits: list[torch.Tensor] = []
        """Of every computed token that counts, from the first after the hit on; each ``[VOCAB_SIZE]``."""
        self._runner = runner
        self._sequence = sequence
        self._request = request

    def prefill(self, num_tokens: int) -> None:
        """Computes the next tokens of the prompt; after its last token the first one is decoded."""
        self._step(self.tokens[self._sequence.num_computed :][:num_tokens], 0)

    def decode(self, drafts: Sequence[int] = ()) -> int:
        """Computes the last token and drafts after it, and takes the drafts that greedy decoding would have chosen.

        Returns:
            Accepted tokens, 1 to 1 + drafts.
        """
        return self._step([self.tokens[-1], *drafts], len(drafts))

    def _step(self, tokens: list[int], num_drafts: int) -> int:
        step = self._sequence.schedule(len(tokens), num_drafts)
        logits = self._runner.forward(
            self._request,
            tokens,
            num_computed=step.num_computed,
            running_block_ids=step.running_block_ids,
            num_accepted=step.num_accepted,
            num_drafts=num_drafts,
        )
        first = len(tokens) - 1 - num_drafts
        chosen = logits[first:].argmax(dim=1).tolist()
        accepted = 1
        while accepted <= num_drafts and tokens[first + accepted] == chosen[accepted - 1]:
            accepted += 1
        self.logits += logits[: first + accepted]
        if step.num_computed + len(tokens) - num_drafts == len(self.tokens):
            self.tokens += chosen[:accepted]
        self._sequence.commit(accepted, self.tokens)
        return accepted
