"""Guarantee: a scheduler that drives sequences over a Schedule stream gets the reference engine's align mode."""

from typing import Any

import pytest

from service.servers import Servers
from statepool import Admission, Client, Commits, Scheduler, Schedules, StepCopies, StepOutcome
from support.traces import NAMES, SCENARIOS, Ask, Move, Renaming, asks, expected_move, prompt_hashes


def move_of(copies: StepCopies) -> Move | None:
    """Reads the one copy of a phase."""
    assert len(copies) <= 1
    if not len(copies):
        return None
    columns = int(copies.src_columns[0]), int(copies.dst_columns[0]), int(copies.token_biases[0])
    return *columns, int(copies.src_block_ids[0]), int(copies.temporal_src_block_ids[0]), int(copies.dst_block_ids[0])


def named(move: Move | None, renaming: Renaming) -> Move | None:
    """Writes a copy with the reference's block ids."""
    if move is None:
        return None
    *columns, src, temporal_src, dst = move
    return columns[0], columns[1], columns[2], renaming[src], renaming[temporal_src], renaming[dst]


def send(scheduler: Scheduler, sequence: int, ask: Ask, request: dict[str, Any], block_tokens: int) -> StepOutcome:
    """Sends one step of a trace."""
    commit = admit = schedule = None
    if ask.accepted is None:
        hashes = prompt_hashes(request, block_tokens)
        admit = Admission(sequence, len(request["prompt_tokens"]), hashes, namespace="trace")
    elif ask.boundary is None:
        commit = Commits([sequence], ask.accepted)
    else:
        boundary, value = ask.boundary
        commit = Commits([sequence], ask.accepted, hash_rows=[0], boundary_tokens=[boundary], prefix_hashes=[value])
    if ask.num_tokens:
        schedule = Schedules([sequence], ask.num_tokens, ask.num_drafts)
    return scheduler.step(
        admit=[admit] if admit else (),
        commit=commit,
        schedule=schedule,
        finish=() if ask.num_tokens else [sequence],
    )


def table_of(client: Client, session_id: int) -> list[int]:
    """Writes the block table of the one sequence out."""
    (page,) = client.list_sequences(session_id)
    assert len(page) == 1
    table: list[int] = page.table(0).tolist()
    return table


@pytest.mark.parametrize("scenario", SCENARIOS, ids=NAMES)
def test_trace_over_a_stream(servers: Servers, scenario: dict[str, Any]) -> None:
    """Tables, copies, hits and free counts are the reference's, up to a renaming of blocks."""
    block_tokens, spec = scenario["block_size"], scenario["num_speculative_tokens"]
    flags = ("--blocks", str(scenario["num_blocks"]), "--block-tokens", str(block_tokens), "--num-spec", str(spec))
    server = servers.shared(*flags, conv_shape=(3 + spec, 8))
    renaming = Renaming()

    with server.client() as client, client.create_session(60.0) as session, session.scheduler() as scheduler:
        before = client.get_pool().usage
        assert before.evictable_blocks == 0
        for sequence, request in enumerate(scenario["requests"]):
            for ask in asks(request, block_tokens):
                outcome = send(scheduler, sequence, ask, request, block_tokens)
                room = outcome.usage.free_blocks + outcome.usage.evictable_blocks
                if ask.committed is None:
                    assert outcome.admissions.num_computed_tokens.tolist() == [request["num_cached_tokens"]]
                else:
                    expected = expected_move(ask.committed["postprocess_copy"])
                    assert named(move_of(outcome.post_copies), renaming) == expected
                if ask.expected is None:
                    assert room == request["free_blocks_after_finish"]
                    continue
                renaming.expect(table_of(client, session.session_id), ask.expected["block_table"])
                assert named(move_of(outcome.pre_copies), renaming) == expected_move(ask.expected["preprocess_copy"])
                assert room == ask.expected["free_blocks"]
        hashes = [value for request in scenario["requests"] for value in _committed(request, block_tokens)]
        session.evict_blocks(prefix_hashes=hashes, namespace="trace")


def _committed(request: dict[str, Any], block_tokens: int) -> list[bytes]:
    return [ask.boundary[1] for ask in asks(request, block_tokens) if ask.boundary is not None]
