"""Guarantee: a group does on every server the same, or ends with one error that names who is lost and why."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from service.conftest import plain_stubs
from service.raw import ref_of
from service.servers import BLOCK_TOKENS, DEADLINE_SECONDS, Server, Servers
from statepool import (
    ALL_RUNNING,
    Admission,
    AsyncClient,
    AsyncGroup,
    Client,
    Commits,
    DivergedError,
    Group,
    GroupError,
    PoolExhaustedError,
    Schedules,
    SequenceNotFoundError,
    SequencePage,
    Session,
    SessionNotFoundError,
    StatepoolError,
    UnavailableError,
    prefix_hashes,
)
from statepool.v1 import session_pb2

MEMBERS = 3
PROMPT = list(range(2 * BLOCK_TOKENS + 1))
HASHES = prefix_hashes(PROMPT, BLOCK_TOKENS)
LOST_SECONDS = 1.0
"""Deadline of calls that a dead member must end."""


@pytest.fixture
def three(servers: Servers) -> list[Server]:
    """Starts the servers of a group, a rank each, to do with as a test likes."""
    started = [servers.start("--tp-size", "3", "--tp-ranks", str(rank)) for rank in range(MEMBERS)]
    return [server.wait_until_ready() for server in started]


@pytest.fixture
def sessions(three: list[Server]) -> Iterator[list[Session]]:
    """Opens a session on each; what a dead server had needs no giving back."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for server in three]
        yield [client.create_session(60.0, resume_within=60.0) for client in clients]


@pytest.fixture
def group(sessions: list[Session]) -> Iterator[Group]:
    """Opens a group over all of them."""
    with Group([session.scheduler() for session in sessions]) as group:
        yield group


def _prefill(group: Group, number: int) -> int:
    """Begins a sequence and runs the first pass of its prompt; returns the tokens that were found."""
    outcome = group.step(admit=[Admission(number, len(PROMPT), prefix_hashes=HASHES)])
    found = int(outcome.admissions.num_computed_tokens[0])
    group.step(schedule=Schedules([number], BLOCK_TOKENS if not found else 1))
    return found


def _publish(group: Group, number: int) -> None:
    """Commits the first pass at its boundary, so that it can be found, and ends the sequence."""
    commit = Commits([number], hash_rows=[0], boundary_tokens=[BLOCK_TOKENS], prefix_hashes=HASHES[:1])
    group.step(commit=commit)
    group.step(finish=[number])


def test_all_do_the_same(group: Group, sessions: list[Session]) -> None:
    """Admissions, hits, tables and digests are those of every member; the states are where each says they are."""
    assert _prefill(group, 1) == 0
    _publish(group, 1)
    assert _prefill(group, 2) == BLOCK_TOKENS
    for _ in range(5):
        outcome = group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))

    pages = [_page(session) for session in sessions]
    assert {page.table(0).tobytes() for page in pages} == {pages[0].table(0).tobytes()}
    assert {page.last_step for page in pages} == {outcome.step}
    assert group.error is None
    assert len(group.targets) == MEMBERS


def _page(session: Session) -> SequencePage:
    with Client(session.target) as client:
        return next(client.list_sequences(session.session_id))


def test_overlapping_steps(group: Group) -> None:
    """Two steps may be under way, and are received in order."""
    _prefill(group, 1)
    numbers = [
        group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING)),
        group.send(finish=[1], commit=Commits(ALL_RUNNING)),
    ]

    assert group.unreceived_steps == tuple(numbers)
    assert [group.receive().step for _ in numbers] == numbers
    assert group.unreceived_steps == ()
    with pytest.raises(RuntimeError, match="every step was received"):
        group.receive()


def test_a_common_refusal_is_one_error_and_the_group_goes_on(group: Group) -> None:
    """What every member refuses for the same reason has changed nothing anywhere."""
    with pytest.raises(SequenceNotFoundError):
        group.step(finish=[77])
    with pytest.raises(PoolExhaustedError):
        group.step(
            admit=[Admission(number, 8) for number in range(30)],
            schedule=Schedules(list(range(30)), 8),
        )
    with pytest.raises(ValueError, match="finish"):
        group.step(finish=[-1])

    assert group.error is None
    assert _prefill(group, 1) == 0


def test_another_driver_is_found_out(group: Group, sessions: list[Session]) -> None:
    """A member that somebody else has changed decides otherwise, and ends the group with its name."""
    _prefill(group, 1)
    sessions[2].allocate_blocks(1)

    with pytest.raises(GroupError) as caught:
        group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))

    assert caught.value.member == sessions[2].target
    assert isinstance(caught.value.__cause__, DivergedError)
    assert "digest" in str(caught.value)
    _assert_ended(group, caught.value)


def test_a_refusal_of_one_ends_the_group(group: Group, sessions: list[Session]) -> None:
    """A member that refuses what the others have applied is named with its reason."""
    sessions[1].allocate_blocks(14)

    with pytest.raises(GroupError) as caught:
        group.step(admit=[Admission(number, 8) for number in range(4)], schedule=Schedules(list(range(4)), 8))

    assert caught.value.member == sessions[1].target
    assert isinstance(caught.value.__cause__, PoolExhaustedError)
    _assert_ended(group, caught.value)


def test_a_lost_session_ends_the_group(group: Group, three: list[Server], sessions: list[Session]) -> None:
    """A member whose session is gone is named, without waiting for a deadline."""
    _prefill(group, 1)
    with plain_stubs(three[0]) as stubs:
        stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session=ref_of(sessions[0])))

    with pytest.raises(GroupError) as caught:
        group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=DEADLINE_SECONDS)

    assert caught.value.member == sessions[0].target
    assert isinstance(caught.value.__cause__, SessionNotFoundError)


def _assert_ended(group: Group, error: GroupError) -> None:
    """Proves that every later call raises the same, and that nothing more is sent."""
    for call in (lambda: group.step(finish=[1]), lambda: group.send(finish=[1]), group.receive, group.open):
        with pytest.raises(GroupError) as again:
            call()
        assert (again.value.message, again.value.failures) == (error.message, error.failures)
        assert again.value.__cause__ is error.__cause__
    assert group.error is not None


def test_members_that_stand_elsewhere(sessions: list[Session]) -> None:
    """A session that has taken steps already is no member beside fresh ones."""
    sessions[1].step(1)

    with pytest.raises(GroupError) as caught, Group([session.scheduler() for session in sessions]):
        pass

    assert caught.value.member == sessions[1].target
    with pytest.raises(ValueError, match="at least one member"):
        Group([])


def _before_send(group: Group, kill: Callable[[], None]) -> None:
    kill()
    group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)


def _after_send(group: Group, kill: Callable[[], None]) -> None:
    group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
    kill()
    group.receive(timeout=LOST_SECONDS)
    group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)


def _between_two(group: Group, kill: Callable[[], None]) -> None:
    group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
    group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
    group.receive()
    kill()
    group.receive(timeout=LOST_SECONDS)
    group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)


def _in_the_midst(group: Group, kill: Callable[[], None]) -> None:
    timer = threading.Timer(0.05, kill)
    timer.start()
    try:
        while True:
            group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)
    finally:
        timer.join()


@pytest.mark.parametrize("victim", [0, *(pytest.param(other, marks=pytest.mark.slow) for other in (1, 2))])
@pytest.mark.parametrize("moment", [_before_send, _after_send, _between_two, _in_the_midst])
def test_a_killed_member_ends_the_group(
    group: Group,
    three: list[Server],
    sessions: list[Session],
    moment: Callable[[Group, Callable[[], None]], None],
    victim: int,
) -> None:
    """Whichever server dies, and when: one error, which names it; the others are not waited for, and live on."""
    _prefill(group, 1)

    with pytest.raises(GroupError) as caught:
        moment(group, three[victim].kill)

    assert caught.value.member == three[victim].target
    assert list(caught.value.failures) == [three[victim].target]
    assert isinstance(caught.value.__cause__, UnavailableError)
    _assert_ended(group, caught.value)
    for number, session in enumerate(sessions):
        if number != victim:
            assert session.allocate_blocks(1) is not None


def test_a_member_that_dies_while_it_is_opened(three: list[Server], sessions: list[Session]) -> None:
    """A group with a dead member does not come about."""
    three[1].kill()
    group = Group([session.scheduler() for session in sessions])

    with pytest.raises(GroupError) as caught:
        group.open(timeout=LOST_SECONDS)

    assert list(caught.value.failures) == [three[1].target]
    _assert_ended(group, caught.value)


def test_a_member_that_dies_while_it_is_closed(group: Group, three: list[Server]) -> None:
    """Closing waits for nobody, and is harmless twice."""
    _prefill(group, 1)
    group.send(finish=[1], commit=Commits(ALL_RUNNING))
    three[2].kill()

    group.close()
    group.close()

    with pytest.raises(RuntimeError, match="the group is closed"):
        group.receive()


def test_a_member_that_is_closed_behind_the_groups_back(three: list[Server], sessions: list[Session]) -> None:
    """A step that others were sent before ends the group; one that nobody was sent is an error of its own."""
    members = [session.scheduler() for session in sessions]
    with Group(members) as group:
        members[0].close()
        with pytest.raises(RuntimeError, match="the scheduler is closed"):
            group.send()
        assert [member.unreceived_steps for member in members] == [()] * MEMBERS

    members = [session.scheduler() for session in sessions]
    with Group(members) as group:
        members[1].close()
        with pytest.raises(GroupError, match="the scheduler is closed") as caught:
            group.step()
        assert caught.value.member == three[1].target
        _assert_ended(group, caught.value)


def test_a_member_that_stands_still(group: Group, three: list[Server]) -> None:
    """A server that is stopped is lost as soon as the deadline has passed."""
    _prefill(group, 1)
    three[0].process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(GroupError) as caught:
            group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)
    finally:
        three[0].process.send_signal(signal.SIGCONT)

    assert caught.value.member == three[0].target


def test_a_member_that_restarts_in_time(group: Group, three: list[Server]) -> None:
    """A server that is back within the deadline has recovered all that it had: the group goes on."""
    _prefill(group, 1)
    group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
    three[1].kill()
    three[1].start()

    group.receive(timeout=DEADLINE_SECONDS)
    for _ in range(3):
        group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))

    assert group.error is None


@pytest.fixture
async def async_group(three: list[Server]) -> AsyncIterator[AsyncGroup]:
    """Opens a group for asyncio over all servers."""
    async with contextlib.AsyncExitStack() as stack:
        schedulers = []
        for server in three:
            client = await stack.enter_async_context(AsyncClient(server.target, timeout=DEADLINE_SECONDS))
            session = await client.create_session(60.0, resume_within=60.0)
            schedulers.append(session.scheduler())
        yield await stack.enter_async_context(AsyncGroup(schedulers))


async def test_asyncio(async_group: AsyncGroup, three: list[Server]) -> None:
    """The group for asyncio does the same: outcomes, common refusals, and the end for a killed member."""
    group = async_group
    await group.step(admit=[Admission(1, 8)], schedule=Schedules([1], 8))
    with pytest.raises(SequenceNotFoundError):
        await group.step(finish=[77])
    with pytest.raises(ValueError, match="finish"):
        await group.step(finish=[-1])
    numbers = [await group.send(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING)) for _ in range(2)]
    assert [(await group.receive()).step for _ in numbers] == numbers

    three[2].kill()
    with pytest.raises(GroupError) as caught:
        await group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING), timeout=LOST_SECONDS)
    assert list(caught.value.failures) == [three[2].target]
    assert isinstance(caught.value.__cause__, StatepoolError)
    with pytest.raises(GroupError):
        await group.step(finish=[1])


async def test_a_group_that_is_closed_while_a_task_receives(async_group: AsyncGroup, three: list[Server]) -> None:
    """The task is told so."""
    for server in three:
        server.process.send_signal(signal.SIGSTOP)
    try:
        await async_group.send()
        receiving = asyncio.ensure_future(async_group.receive())
        await asyncio.sleep(0)
        await async_group.close()
        with pytest.raises(RuntimeError, match="the group is closed"):
            await receiving
    finally:
        for server in three:
            server.process.send_signal(signal.SIGCONT)


async def test_a_member_that_is_closed_behind_the_groups_back_async(three: list[Server]) -> None:
    """A group for asyncio does not come about with it, and ends when the others are sent a step that it is not."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(server.target)) for server in three]
        sessions = [await client.create_session(60.0) for client in clients]
        members = [session.scheduler() for session in sessions]
        await members[2].close()
        with pytest.raises(RuntimeError, match="the scheduler is closed"):
            await AsyncGroup(members).open()

        members = [session.scheduler() for session in sessions]
        async with AsyncGroup(members) as group:
            await members[1].close()
            with pytest.raises(GroupError, match="the scheduler is closed") as caught:
                await group.step()
            assert caught.value.member == three[1].target
            assert group.error is not None


async def test_a_cancelled_step_is_everybodys_or_nobodys(async_group: AsyncGroup) -> None:
    """However early a step is cancelled, all members go on alike, and its outcome is received."""
    group = async_group
    await group.step(admit=[Admission(1, 8)], schedule=Schedules([1], 8))
    for turns in range(12):
        task = asyncio.create_task(group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING)))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        with contextlib.suppress(RuntimeError):
            await group.receive(timeout=DEADLINE_SECONDS)

    outcome = await group.step(commit=Commits(ALL_RUNNING), schedule=Schedules(ALL_RUNNING))
    assert outcome.step > 2
    assert group.error is None
