"""Guarantee: an engine step says on the wire what the scheduler said, and its outcome reads back as it was sent."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statepool import (
    ALL_RUNNING,
    Admission,
    BlockRefs,
    Commits,
    Execution,
    ImportedState,
    NoticeKind,
    Schedules,
    StepOutcome,
)
from statepool.calls.sequences import StepArguments, list_sequences, notice, schedule_step
from statepool.v1 import pool_pb2
from statepool.v1 import sequence_pb2 as pb

narrow, wide = st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1)
hashes = st.lists(st.binary(min_size=1, max_size=64), max_size=4)


def step(**parts: Any) -> pb.EngineStep:
    """Builds step 9 as a scheduler does, and sends it through bytes."""
    arguments: StepArguments = {
        "admit": (),
        "schedule": None,
        "commit": None,
        "finish": (),
        "settled_step": None,
        "partial_admission": False,
    }
    arguments.update(parts)  # type: ignore[typeddict-item]
    request = schedule_step(9, Execution.WORKER, arguments)
    return pb.ScheduleRequest.FromString(request.SerializeToString()).step


def as_given(values: list[int], form: str) -> object:
    """Gives a column in one of the forms that callers have."""
    return {"list": values, "tuple": tuple(values), "array": np.array(values, np.uint64)}[form]


@given(st.lists(st.tuples(wide, narrow, narrow), max_size=40), st.sampled_from(["list", "tuple", "array"]))
def test_schedules(rows: list[tuple[int, int, int]], form: str) -> None:
    """Every row comes over, whatever its columns were."""
    ids, tokens, drafts = (as_given(list(column), form) for column in (zip(*rows, strict=True) if rows else ([],) * 3))

    message = step(schedule=Schedules(ids, tokens, drafts)).schedules  # type: ignore[arg-type]

    columns = message.sequence_ids, message.num_tokens, message.num_draft_tokens
    assert list(zip(*columns, strict=True)) == rows
    assert not message.all_running


@given(st.lists(st.tuples(wide, narrow, st.none() | st.tuples(wide, st.binary(min_size=1, max_size=64))), max_size=40))
def test_commits(rows: list[tuple[int, int, tuple[int, bytes] | None]]) -> None:
    """Rows with a boundary keep it beside their hash."""
    reached = [(row, *boundary) for row, (_, _, boundary) in enumerate(rows) if boundary]
    commits = Commits(
        [row[0] for row in rows],
        [row[1] for row in rows],
        hash_rows=[row for row, _, _ in reached],
        boundary_tokens=[boundary for _, boundary, _ in reached],
        prefix_hashes=[value for _, _, value in reached],
    )

    message = step(commit=commits).commits

    assert list(zip(message.sequence_ids, message.accepted_tokens, strict=True)) == [row[:2] for row in rows]
    assert list(zip(message.hash_rows, message.boundary_tokens, message.prefix_hashes, strict=True)) == reached


def test_the_commonest_step_is_a_few_bytes() -> None:
    """Everybody decodes one token: no row is named, and each column is one number."""
    message = step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))

    assert message.commits == pb.Commits(all_running=True, accepted_tokens=[1])
    assert message.schedules == pb.Schedules(all_running=True, num_tokens=[1], num_draft_tokens=[0])
    assert (message.step, message.settled_step, message.execution) == (9, 8, pb.EXECUTION_WORKER)
    assert message.ByteSize() < 64


def test_nothing_said_is_nothing_sent() -> None:
    """An empty step has its numbers only."""
    assert step() == pb.EngineStep(step=9, settled_step=8, execution=pb.EXECUTION_WORKER)


@given(st.lists(wide, max_size=20), st.booleans(), st.none() | st.integers(0, 8))
def test_finishes_and_flags(ids: list[int], partial: bool, settled: int | None) -> None:
    """Finishes, partial admission and settlement come over."""
    message = step(finish=ids, partial_admission=partial, settled_step=settled)

    assert list(message.finishes) == ids
    assert message.partial_admission == partial
    assert message.settled_step == (8 if settled is None else settled)


admissions = st.builds(
    Admission,
    sequence_id=wide,
    prompt_tokens=wide,
    prefix_hashes=hashes,
    max_hit_tokens=st.none() | wide,
    namespace=st.sampled_from(["", "m", "tenant"]),
    imported=st.none() | st.builds(ImportedState, st.just(BlockRefs.of([7], [3])), wide),
)


@given(st.lists(admissions, min_size=1, max_size=8))
def test_admissions(rows: list[Admission]) -> None:
    """Each row finds its hashes, bound, namespace and state again."""
    message = step(admit=rows).admissions

    offsets = list(message.hash_offsets) or [0] * (len(rows) + 1)
    bounds = list(message.max_hit_tokens) or [row.prompt_tokens for row in rows]
    namespaces = list(message.namespaces) or [""]
    namespaces *= len(rows) if len(namespaces) == 1 else 1
    imported = dict(zip(message.import_rows, message.imported_tokens, strict=True))
    assert len(message.imported_blocks.block_ids) == len(imported)
    for index, row in enumerate(rows):
        bound = row.prompt_tokens if row.max_hit_tokens is None else row.max_hit_tokens
        read = message.prefix_hashes[offsets[index] : offsets[index + 1]]
        assert (message.sequence_ids[index], message.prompt_tokens[index]) == (row.sequence_id, row.prompt_tokens)
        assert (list(read), bounds[index], namespaces[index]) == (row.prefix_hashes, bound, row.namespace)
        assert imported.get(index) == (row.imported.num_tokens if row.imported else None)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"finish": [-1]}, "finish"),
        ({"finish": [2**64]}, "finish"),
        ({"settled_step": -1}, "settled_step"),
        ({"schedule": Schedules([1], 2**32)}, "schedule.num_tokens"),
        ({"schedule": Schedules([1], 1, np.array([-1]))}, "schedule.num_draft_tokens"),
        ({"schedule": Schedules([1.5])}, "schedule.sequence_ids"),
        ({"commit": Commits(np.array([-1]))}, "commit.sequence_ids"),
        ({"commit": Commits([1], 0.5)}, "commit.accepted_tokens"),
        ({"commit": Commits([1], 1, [-1])}, "commit.hash_rows"),
        ({"commit": Commits([1], 1, [0], [-1])}, "commit.boundary_tokens"),
        ({"admit": [Admission(-1, 1)]}, "admit.sequence_id"),
        ({"admit": [Admission(1, -1)]}, "admit.prompt_tokens"),
        ({"admit": [Admission(1, 1, max_hit_tokens=-1)]}, "admit.max_hit_tokens"),
    ],
)
def test_what_would_wrap_around_is_refused(parts: dict[str, Any], name: str) -> None:
    """No number is silently sent as another one; the error names the argument."""
    with pytest.raises(ValueError, match=name):
        step(**parts)


@given(st.integers(1, 3), st.lists(st.tuples(narrow, narrow), max_size=20), st.data())
def test_table_changes(width: int, rows: list[tuple[int, int]], data: st.DataObject) -> None:
    """The blocks of each changed row are its own, as many as the running column and those for drafts."""
    refs = data.draw(st.lists(st.tuples(narrow, wide), min_size=len(rows) * width, max_size=len(rows) * width))
    message = pb.TableChanges(
        rows=[row for row, _ in rows],
        running_columns=[column for _, column in rows],
        block_ids=[block for block, _ in refs],
        generations=[generation for _, generation in refs],
    )

    tables = StepOutcome(pb.StepOutcome(tables=message)).tables

    assert list(zip(tables.rows.tolist(), tables.running_columns.tolist(), strict=True)) == rows
    for index in range(len(tables)):
        pairs = refs[index * width : (index + 1) * width]
        assert tables.blocks(index) == BlockRefs.of([block for block, _ in pairs], [gen for _, gen in pairs])


def test_no_table_changed() -> None:
    """Where nothing changed, the block columns can still be assigned to rows of any width."""
    tables, mirror = StepOutcome(pb.StepOutcome()).tables, np.zeros((4, 3), np.int64)

    mirror[tables.rows] = tables.block_ids

    assert len(tables) == 0


@given(st.lists(st.tuples(*[narrow] * 7), max_size=20))
def test_copies(rows: list[tuple[int, ...]]) -> None:
    """Copies read back, and make the plan of an attached worker's engine."""
    names = [column.name for column in pb.StepCopies.DESCRIPTOR.fields]
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}
    message = pb.StepOutcome(post_copies=pb.StepCopies(**columns), pre_copies=pb.StepCopies(**columns))

    outcome = StepOutcome(message)

    for copies in (outcome.post_copies, outcome.pre_copies):
        assert list(zip(*(getattr(copies, name).tolist() for name in names), strict=True)) == rows
        plan = copies.plan()
        moved = plan.src_blocks, plan.dst_blocks, plan.token_biases, plan.temporal_src_blocks
        assert list(zip(*(column.tolist() for column in moved), strict=True)) == [
            (row[4], row[6], row[3], row[5]) for row in rows
        ]


def test_the_rest_of_an_outcome() -> None:
    """Counts, digest, admissions, zeroed blocks and usage read back."""
    message = pb.StepOutcome(
        step=3,
        digest=2**64 - 1,
        admissions=pb.AdmissionResults(num_computed_tokens=[0, 32], block_ids=[0, 5]),
        zeroed_block_ids=[8, 2],
        published_blocks=4,
        usage=pool_pb2.PoolUsage(free_blocks=6, sequences=2),
    )

    outcome = StepOutcome(message)

    assert (outcome.step, outcome.digest, outcome.published_blocks) == (3, 2**64 - 1, 4)
    assert outcome.admissions.num_computed_tokens.tolist() == [0, 32]
    assert outcome.admissions.block_ids.tolist() == [0, 5]
    assert outcome.zeroed_block_ids.tolist() == [8, 2]
    assert (outcome.usage.free_blocks, outcome.usage.sequences) == (6, 2)


def test_notices() -> None:
    """A notice has its kind and counts; a kind of a newer server is passed over."""
    known = notice(pb.Notice(kind=pb.Notice.KIND_PRESSURE, usage=pool_pb2.PoolUsage(free_blocks=1)))

    assert known is not None
    assert (known.kind, known.usage.free_blocks) == (NoticeKind.PRESSURE, 1)
    assert notice(pb.Notice(kind=99)) is None  # type: ignore[arg-type]


def test_pages_of_sequences() -> None:
    """Counters read back, and a sparse table is written out with its nulls."""
    response = pb.ListSequencesResponse(
        incarnation=7,
        sequence_ids=[4, 9],
        num_computed_tokens=[40, 0],
        num_accepted_tokens=[2, 1],
        outstanding_tokens=[3, 0],
        outstanding_draft_tokens=[2, 0],
        scheduled_steps=[11, 0],
        running_column_ends=[3, 0],
        table_lengths=[5, 0],
        entry_offsets=[0, 3, 3],
        entry_columns=[2, 3, 4],
        entry_block_ids=[6, 7, 8],
        entry_generations=[1, 3, 5],
        namespaces=["m", ""],
        last_step=11,
        settled_step=10,
        next_page_token="more",
    )

    page, token = list_sequences(1, 0, "").parse(response)

    assert (page.sequence_ids.tolist(), page.running_columns.tolist(), page.namespaces) == ([4, 9], [2, -1], ("m", ""))
    assert [page.table(row).tolist() for row in range(len(page))] == [[0, 0, 6, 7, 8], []]
    assert page.entry_blocks.generations.tolist() == [1, 3, 5]
    assert (page.last_step, page.settled_step, token) == (11, 10, "more")
