"""Guarantee: a worker that cannot answer is waited for until it is proven dead, and not a moment longer."""

import signal
import subprocess
import sys

from attach.workers import Worker, Workers
from service.servers import CAPACITY, Server, until
from statepool import Client, Session

SCHEDULER = """
import sys
from statepool import Client
client = Client(sys.argv[1])
session = client.create_session(float(sys.argv[2]))
blocks = session.allocate_blocks(3)
print(session.session_id, session.epoch, int(blocks.block_ids[0]), flush=True)
sys.stdin.read()
"""
"""A process that holds blocks until it is killed."""


def scheduler(server: Server) -> tuple["subprocess.Popen[str]", tuple[int, int, int]]:
    """Starts a scheduler; returns it with its session, epoch and one of its blocks."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCHEDULER, server.target, "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    session_id, epoch, block = map(int, process.stdout.readline().split())
    return process, (session_id, epoch, block)


def kill(process: "subprocess.Popen[str]") -> None:
    """Kills a process without a warning."""
    process.kill()
    process.communicate()


def quarantined(client: Client) -> int:
    """Counts the blocks in quarantine."""
    return client.get_pool().usage.quarantined_blocks


def all_free(client: Client) -> bool:
    """Tells whether every block is free."""
    return client.get_pool().usage.free_blocks == CAPACITY


def in_pass(workers: Workers, server: Server, session: Session) -> Worker:
    """Starts a worker in the middle of a pass of a session."""
    worker = workers.start(server)
    assert worker.ask("begin", session.session_id, session.epoch) == ""
    return worker


def test_killed_scheduler(server: Server, client: Client, workers: Workers) -> None:
    """Its blocks come back when its lease is over and the worker, which writes on and on, has stopped."""
    process, (session_id, epoch, block) = scheduler(server)
    worker = workers.start(server)
    worker.send("write_on", block, session_id, epoch)

    kill(process)

    assert worker.hear() == "fenced"
    until(lambda: all_free(client), "the blocks")
    assert worker.ask("peek", block) >= 0
    assert [attached.is_connected for attached in client.list_attachments()] == [True]


def test_killed_worker(server: Server, client: Client, workers: Workers) -> None:
    """It detaches by dying, in the middle of a pass, and its blocks leave quarantine."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    worker = in_pass(workers, server, session)
    session.delete()
    until(lambda: quarantined(client) == 2, "the quarantine")

    worker.signal(signal.SIGKILL)

    until(lambda: all_free(client), "the blocks")
    assert client.list_attachments() == []


def test_both_killed(server: Server, client: Client, workers: Workers) -> None:
    """With scheduler and worker dead at once nothing is left of either."""
    process, (session_id, epoch, block) = scheduler(server)
    worker = workers.start(server)
    worker.send("write_on", block, session_id, epoch)

    worker.signal(signal.SIGKILL)
    kill(process)

    until(lambda: client.get_pool().usage.sessions == 0, "the end of the lease")
    until(lambda: all_free(client), "the blocks")
    until(lambda: client.list_attachments() == [], "the end of the attachment")


def test_stopped_worker(server: Server, client: Client, workers: Workers) -> None:
    """One that stands still may write as soon as it goes on: it is waited for, and answers then."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    worker = workers.start(server)
    worker.signal(signal.SIGSTOP)
    session.delete()
    other = client.create_session(60.0)
    assert quarantined(client) == 2
    free = len(other.allocate_blocks(CAPACITY - 2))
    other.delete()
    assert quarantined(client) == CAPACITY

    worker.signal(signal.SIGCONT)

    until(lambda: all_free(client), "the blocks")
    assert free == CAPACITY - 2
    assert worker.ask("peek", 1) == 0


def test_stopped_worker_is_killed(server: Server, client: Client, workers: Workers) -> None:
    """One that stands still and is killed is as dead as any."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    worker = workers.start(server)
    worker.signal(signal.SIGSTOP)
    session.delete()
    until(lambda: quarantined(client) == 2, "the quarantine")

    worker.signal(signal.SIGKILL)

    until(lambda: all_free(client), "the blocks")


def test_a_hung_up_worker_is_still_there(server: Server, client: Client, workers: Workers) -> None:
    """One that closes its connection but lives may write: it is waited for until it dies."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    worker = workers.start(server)
    worker.ask("hang_up")
    until(lambda: not client.list_attachments()[0].is_connected, "the end of the connection")

    session.delete()

    assert quarantined(client) == 2
    assert [attached.pid for attached in client.list_attachments()] == [worker.process.pid]
    worker.end()
    until(lambda: all_free(client), "the blocks")
    until(lambda: client.list_attachments() == [], "the end of the attachment")


def test_two_workers(server: Server, client: Client, workers: Workers) -> None:
    """Blocks wait for the last of the workers, on whatever rank."""
    session = client.create_session(60.0)
    session.allocate_blocks(2)
    first = in_pass(workers, server, session)
    second = workers.start(server, rank_index=1)
    assert second.ask("begin", session.session_id, session.epoch) == ""
    session.delete()
    until(lambda: quarantined(client) == 2, "the quarantine")

    first.ask("end")
    until(lambda: sum(attached.unanswered_fences for attached in client.list_attachments()) == 1, "an answer")
    waiting = quarantined(client)
    second.ask("end")

    until(lambda: all_free(client), "the blocks")
    assert waiting == 2
