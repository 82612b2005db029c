"""What the journal costs: a server that writes one and a server that does not, side by side in one run, in turns."""

import asyncio
from contextlib import AsyncExitStack, ExitStack

from benchmarks.turns import Operation, compare
from service.servers import Servers, fast_folder
from statepool import ALL_RUNNING, Admission, AsyncClient, AsyncSession, Commits, Schedules

BATCH = 256
BLOCK_TOKENS = 2**20
"""No sequence crosses a boundary while it is measured."""
FLAGS = ("--blocks", "1025", "--block-tokens", str(BLOCK_TOKENS))
Row = tuple[str, float, str, str]
"""Name, value, unit, bar."""


async def _stepping(session: AsyncSession, stack: AsyncExitStack, *, by_all: bool) -> Operation:
    """Begins sequences; gives a step in which each decodes one token."""
    scheduler = await stack.enter_async_context(session.scheduler())
    ids = list(range(1, BATCH + 1))
    await scheduler.step(admit=[Admission(number, 4) for number in ids])
    await scheduler.step(schedule=Schedules(ids, 4))
    named = ALL_RUNNING if by_all else ids
    ones = 1 if by_all else [1] * BATCH
    commit, schedule = Commits(named, ones), Schedules(named, ones)
    return lambda: scheduler.step(commit=commit, schedule=schedule)


async def _operations(target: str, stack: AsyncExitStack) -> dict[str, Operation]:
    client = await stack.enter_async_context(AsyncClient(target))
    sessions = [await stack.enter_async_context(await client.create_session(600.0)) for _ in range(3)]

    async def churn() -> None:
        await sessions[2].free_blocks(await sessions[2].allocate_blocks(BATCH, zero=False))

    return {
        "step of 256, broadcast columns": await _stepping(sessions[0], stack, by_all=True),
        "step of 256, every column explicit": await _stepping(sessions[1], stack, by_all=False),
        "allocate + free 256 blocks": churn,
    }


async def _measure(journaled: str, plain: str) -> list[Row]:
    rows: list[Row] = []
    async with AsyncExitStack() as stack:
        with_journal, without = await _operations(journaled, stack), await _operations(plain, stack)
        for name, operation in with_journal.items():
            measured = await compare(operation, without[name])
            bar = "<= 1.10" if name.startswith("step") else ""
            rows.append((f"{name}: with the journal / without", measured.ratio, "x", bar))
            rows.append((f"  {name}", measured.us, "us", ""))
    return rows


def rows() -> list[Row]:
    """Measures everything."""
    with fast_folder() as folder, ExitStack() as stack:
        servers = Servers(folder)
        stack.callback(servers.stop)
        journaled = servers.start(*FLAGS).wait_until_ready()
        plain = servers.start(*FLAGS, "--no-recovery", "").wait_until_ready()
        return asyncio.run(_measure(journaled.target, plain.target))


if __name__ == "__main__":
    for name, value, unit, bar in rows():
        print(f"{name:64} {value:8.2f} {unit:6} {bar}")
