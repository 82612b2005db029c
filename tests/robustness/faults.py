"""What is done to the processes of a run while they work; each fault is drawn, timed and aimed by the run's seed."""

import contextlib
import random
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from robustness.cluster import Cluster
from robustness.lies import Liar

GARBAGE_BYTES = 4096
MOST_SECONDS = 3.0
MOST_FILE_BYTES = 2 * 2**20
"""Room for a log, and none for a segment of the journal."""
MOMENTS = {
    **dict.fromkeys(("act", "journal.before", "journal.after"), 400),
    **dict.fromkeys(("copy", "stage"), 50),
    "copy.half": 3,
    "answer": 100,
}
"""Failpoints of the server, and how often one may be passed before the server dies there."""
MOST_JUMP_SECONDS = 2 * 24 * 3600


def _some_seconds(cluster: Cluster, dice: random.Random) -> float:
    """Draws a time that half of the leases outlive, where they are short."""
    return dice.uniform(0.05, 2.0) * min(cluster.scenario.ttl, MOST_SECONDS)


def calm(cluster: Cluster, dice: random.Random) -> None:
    """Nothing happens."""


def kill_scheduler(cluster: Cluster, dice: random.Random) -> None:
    """A scheduler dies in whatever it is doing; its successor takes the session over, or the lease ends."""
    cluster.kill(dice.choice(cluster.schedulers))


def stop_scheduler(cluster: Cluster, dice: random.Random) -> None:
    """A scheduler stands still, maybe for longer than its lease, and goes on as if nothing had happened."""
    cluster.stop_for(dice.choice(cluster.schedulers).process, _some_seconds(cluster, dice))


def usurp_scheduler(cluster: Cluster, dice: random.Random) -> None:
    """A scheduler stands still while another takes its place, and goes on beside it."""
    cluster.usurp(dice.choice(cluster.schedulers), _some_seconds(cluster, dice))


def kill_worker(cluster: Cluster, dice: random.Random) -> None:
    """A worker dies, maybe within a pass."""
    cluster.kill(dice.choice(cluster.workers))


def stop_worker(cluster: Cluster, dice: random.Random) -> None:
    """A worker stands still, maybe within a pass whose session is lost meanwhile, and writes on afterwards."""
    cluster.stop_for(dice.choice(cluster.workers).process, _some_seconds(cluster, dice))


def cut(cluster: Cluster, dice: random.Random) -> None:
    """All connections of a scheduler break."""
    dice.choice(cluster.proxies).cut()


def half_close(cluster: Cluster, dice: random.Random) -> None:
    """One side of a scheduler's connections is told that the other has nothing more to say."""
    dice.choice(cluster.proxies).half_close()


def replay(cluster: Cluster, dice: random.Random) -> None:
    """The server is told once more all that a scheduler has told it on a former connection, or on this one."""
    dice.choice(cluster.proxies).replay()


def stall(cluster: Cluster, dice: random.Random) -> None:
    """Nothing passes between a scheduler and the server for a while, maybe for longer than a lease."""
    dice.choice(cluster.proxies).stall(_some_seconds(cluster, dice))


def stop_server(cluster: Cluster, dice: random.Random) -> None:
    """The server stands still, and finds leases ended when it goes on."""
    cluster.stop_for(cluster.server.process, _some_seconds(cluster, dice) / 2)


def kill_server(cluster: Cluster, dice: random.Random) -> None:
    """The server dies in whatever it is doing, and another is started in its place."""
    cluster.kill_server()
    cluster.restart_server()


def crash(cluster: Cluster, dice: random.Random) -> None:
    """The server dies, and the next one at a bad moment: around a note in its journal, in a copy, before an answer."""
    moment, most_visits = dice.choice(list(MOMENTS.items()))
    cluster.kill_server()
    cluster.restart_server(failpoints=f"{moment}={dice.randint(0, most_visits)}+kill")


def drain_server(cluster: Cluster, dice: random.Random) -> None:
    """The server is told to end, and another is started in its place."""
    server = cluster.server
    server.terminate()
    cluster.history.note("drained", code=server.wait())
    cluster.restart_server()


def tear_journal(cluster: Cluster, dice: random.Random) -> None:
    """The server dies, and bytes of its journal are not what it has written."""
    cluster.kill_server()
    cluster.history.note("torn")
    for path in sorted(cluster.server.state_dir.glob("segment-*.log"))[-1:]:
        _flip_some_byte(path, dice)
    cluster.restart_server()


def _flip_some_byte(path: Path, dice: random.Random) -> None:
    data = path.read_bytes()
    place = dice.randrange(len(data.rstrip(b"\0")))
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1 << dice.randrange(8)]))


def fill_disk(cluster: Cluster, dice: random.Random) -> None:
    """The server can make no file longer for a while, as if there were no room: neither journal nor snapshot."""
    process = psutil.Process(cluster.server.process.pid)
    limits = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (MOST_FILE_BYTES, limits[1]))
    cluster.later(_some_seconds(cluster, dice), lambda: _give_room(process, limits))


def _give_room(process: psutil.Process, limits: tuple[int, int]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.rlimit(psutil.RLIMIT_FSIZE, limits)


def jump_clock(cluster: Cluster, dice: random.Random) -> None:
    """The time of day jumps by up to two days, either way, for the server."""
    cluster.jump_clock(dice.randint(-MOST_JUMP_SECONDS, MOST_JUMP_SECONDS))


def garbage(cluster: Cluster, dice: random.Random) -> None:
    """Somebody sends bytes without a meaning to both sockets of the server, and hangs up."""
    for path in cluster.server.socket.parent.glob("s.sock*"):
        _send_garbage(path, dice)


def _send_garbage(path: Path, dice: random.Random) -> None:
    with socket.socket(socket.AF_UNIX) as stream, contextlib.suppress(OSError):
        stream.settimeout(5.0)
        stream.connect(str(path))
        preface = dice.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (9).to_bytes(4, "little")])
        stream.sendall(preface + dice.randbytes(dice.randint(1, GARBAGE_BYTES)))


def lie(cluster: Cluster, dice: random.Random) -> None:
    """A client makes calls with what is not its own, out of date, out of order, or untrue."""
    with Liar(cluster.server.target, dice) as liar:
        for name, answer in liar.lies():
            cluster.history.note("lied", lie=name, answer=answer)


Fault = Callable[[Cluster, random.Random], None]

FAULTS: Mapping[str, Fault] = {
    fault.__name__: fault
    for fault in (
        *(calm, kill_scheduler, stop_scheduler, usurp_scheduler, kill_worker, stop_worker),
        *(cut, half_close, replay, stall, garbage, lie),
        *(stop_server, kill_server, crash, drain_server, tear_journal, fill_disk, jump_clock),
    )
}
"""All faults, by their names."""
