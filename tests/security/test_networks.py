"""Guarantee: states go between machines with nothing but a network between them, and survive its failures.

Two network namespaces stand for the machines, a pair of virtual Ethernet devices for the network; it takes root to make
them. The test itself reaches either server by its Unix socket, as processes on its machine do.
"""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from security.authority import Authority, uri
from service.servers import Server, fast_folder
from statepool import DeadlineExceededError, PeerLostError, Session
from transfer.images import fill, images

LONG = 60.0
WIDE = (4, 65536)
"""Shape of a conv state of half a megabyte."""
PORT = 7077
SLOW = ("rate", "8mbit", "burst", "64kb", "latency", "400ms")
"""A network that takes seconds for some blocks."""


def _may_make_networks() -> bool:
    if not (shutil.which("ip") and shutil.which("tc") and shutil.which("nsenter")) or os.geteuid() != 0:
        return False
    name = f"sp{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        subprocess.run(["ip", "netns", "delete", name], check=True)
    return made


pytestmark = pytest.mark.skipif(not _may_make_networks(), reason="makes network namespaces: needs root, ip and tc")


@dataclass(frozen=True)
class Machine:
    """A network namespace."""

    name: str
    address: str

    def run(self, *command: str) -> None:
        """Runs a command on it."""
        subprocess.run(["nsenter", f"--net=/run/netns/{self.name}", *command], check=True)

    def cut(self) -> None:
        """Pulls its cable."""
        self.run("ip", "link", "set", "wire", "down")

    def mend(self) -> None:
        """Plugs it in again."""
        self.run("ip", "link", "set", "wire", "up")

    def slow_down(self) -> None:
        """Lets hardly anything through from here."""
        self.run("tc", "qdisc", "replace", "dev", "wire", "root", "tbf", *SLOW)


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """Makes two machines on one network."""
    pid = os.getpid()
    pair = Machine(f"sp{pid}a", "10.213.7.1"), Machine(f"sp{pid}b", "10.213.7.2")
    with contextlib.ExitStack() as stack:
        for machine in pair:
            subprocess.run(["ip", "netns", "add", machine.name], check=True)
            stack.callback(subprocess.run, ["ip", "netns", "delete", machine.name], check=True)
        ends = [
            "ip",
            "link",
            "add",
            "wire",
            "netns",
            pair[0].name,
            "type",
            "veth",
            "peer",
            "wire",
            "netns",
            pair[1].name,
        ]
        subprocess.run(ends, check=True)
        for machine in pair:
            machine.run("ip", "address", "add", f"{machine.address}/30", "dev", "wire")
            machine.mend()
        yield pair


@pytest.fixture
def sessions(machines: tuple[Machine, Machine], authority: Authority) -> Iterator[tuple[Session, Session, str]]:
    """Starts a server on each machine; yields a session at either, and where the first is for the second."""
    source = f"{machines[0].address}:{PORT}"
    with fast_folder() as folder, contextlib.ExitStack() as stack:
        opened = []
        for machine in machines:
            server = stack.enter_context(_serving(folder / machine.name, machine, authority, source))
            client = stack.enter_context(server.client())
            opened.append(stack.enter_context(client.create_session(LONG)))
        yield opened[0], opened[1], source


@contextlib.contextmanager
def _serving(folder: Path, machine: Machine, authority: Authority, source: str) -> Iterator[Server]:
    names = (x509.IPAddress(ip_address(machine.address)), uri("spiffe://cluster.test/statepool/worker"))
    listen = {f"--listen={machine.address}:{PORT}": "", "--stall-timeout": "2s", "--allow-peer": source}
    flags = [word for flag in listen.items() for word in flag]
    under = ("nsenter", f"--net=/run/netns/{machine.name}")
    server = Server(folder, *authority.server_flags(*names), *flags, conv_shape=WIDE, under=under)
    try:
        yield server.wait_until_ready()
    finally:
        server.stop()


def test_from_machine_to_machine(sessions: tuple[Session, Session, str]) -> None:
    """What arrives on the other machine are the bytes that were lent on the first."""
    lender, taker, source = sessions
    blocks = lender.allocate_blocks(4)
    expected = fill(lender, blocks, lender.get_pool())

    received = taker.receive_transfer(lender.create_transfer(blocks), source=source)

    assert np.array_equal(images(taker, received.blocks), expected)


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_cut_cable(machines: tuple[Machine, Machine], sessions: tuple[Session, Session, str], moment: str) -> None:
    """A network that fails is told in time, leaves nobody a block, and the same transfer goes on when it is back."""
    lender, taker, source = sessions
    blocks = lender.allocate_blocks(4)
    expected = fill(lender, blocks, lender.get_pool())
    transfer = lender.create_transfer(blocks)
    if moment == "before":
        machines[1].cut()
    else:
        machines[0].slow_down()
        threading.Timer(1.0, machines[1].cut).start()  # of four seconds or so

    started = time.monotonic()
    with pytest.raises((PeerLostError, DeadlineExceededError)):
        taker.receive_transfer(transfer, source=source, timeout=15.0)

    assert time.monotonic() - started >= (1.0 if moment == "meanwhile" else 0.0)
    assert taker.get_pool().usage.held_blocks == 0
    machines[0].run("tc", "qdisc", "replace", "dev", "wire", "root", "pfifo")
    machines[1].mend()
    received = taker.receive_transfer(transfer, source=source)
    assert np.array_equal(images(taker, received.blocks), expected)
