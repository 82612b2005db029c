"""Guarantee: a client does not hammer a server that is overloaded, and what it tells of its retries is true."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from service.servers import CAPACITY, DEADLINE_SECONDS, Servers, until
from statepool import OverloadedError
from statepool.retries import MAX_SAVED_RETRIES, RETRIES_PER_CALL, RETRIES_PER_SECOND

CALLS = 150
AT_A_TIME = 30


def test_an_overloaded_server(servers: Servers) -> None:
    """Calls that all find it overloaded are sent again a tenth as often, beside a burst and one a second."""
    server = servers.shared("--max-waiting-allocations", "1")
    with server.client() as operator, operator.create_session(60.0) as holder:
        holder.allocate_blocks(CAPACITY)
        with server.client() as waiting, waiting.create_session(60.0) as patient:
            in_line = threading.Thread(target=patient.allocate_blocks, args=(1,), kwargs={"max_wait": 600.0})
            in_line.start()
            until(lambda: operator.get_pool().usage.waiting_allocations == 1, "somebody to wait")

            with server.client() as client, client.create_session(60.0) as session:
                started = time.monotonic()
                with ThreadPoolExecutor(AT_A_TIME) as threads:
                    calls = [
                        threads.submit(session.allocate_blocks, 1, max_wait=DEADLINE_SECONDS) for _ in range(CALLS)
                    ]
                failures = {type(call.exception()) for call in calls}
                elapsed = time.monotonic() - started
                stats = client.stats

            sent = operator.get_server_info().calls["statepool.v1.BlockService/AllocateBlocks:UNAVAILABLE"]
            holder.delete()
            in_line.join(DEADLINE_SECONDS)

    assert failures == {OverloadedError}
    assert sent == CALLS + stats.retries
    assert 0 < stats.retries <= MAX_SAVED_RETRIES + stats.calls * RETRIES_PER_CALL + elapsed * RETRIES_PER_SECOND
    assert stats.refused_retries > 0
