"""Where prefill chunks end, so that the states worth keeping stand exactly at block boundaries."""


def align_chunk(num_computed: int, num_new: int, num_tokens: int, block_tokens: int) -> int:
    """Clips a prefill chunk so that it ends at a block boundary where it can.

    A state can be found by others only if it was kept exactly at a boundary. So a chunk ends at the last boundary that
    it reaches; one that reaches none stays as it is, and its state is simply not kept. The tokens after the last
    boundary of a prompt thereby become a chunk of their own. Wherever a chunk begins (an imported state may stand
    anywhere), it is its *end* that is aligned. A sequence that decodes (its last known token alone is left) is never
    clipped, drafts included. vLLM's scheduler splits prefills for align mode in the same way
    (``_mamba_block_aligned_split``), except that it cuts a chunk shorter than a block to nothing.

    Args:
        num_computed: Tokens that the state has seen, from 0.
        num_new: Tokens that the budget allows, from 0; where one known token is left, it is taken for a decode, so that
            more than one are drafts.
        num_tokens: Tokens of the sequence that are known.
        block_tokens: Tokens per block, ``Pool.block_tokens``.

    Returns:
        Tokens to schedule: at most num_new, in a prefill no more than are known, and 0 only if num_new is.
    """
    if num_computed >= num_tokens - 1:
        return num_new
    end = min(num_computed + num_new, num_tokens)
    boundary = end - end % block_tokens
    return (boundary if boundary > num_computed else end) - num_computed
