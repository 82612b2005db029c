"""Reads of another process's blocks over NIXL, without servers: what the transfers over NIXL are compared with."""

import asyncio
import base64
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np

from statepool.transfers import NixlEndpoint
from statepool_server.journal.encoding import decode, encode
from statepool_server.nixl_agent import NixlAgent


class BareNixl:
    """Another process with blocks, and an agent here that reads them."""

    def __init__(self, block_bytes: int, blocks: int, environment: Mapping[str, str]) -> None:
        """Starts the other process, which ends with its standard input.

        Args:
            block_bytes: Bytes of a block.
            blocks: How many.
            environment: Variables that NIXL looks at, of both processes.
        """
        kept = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        command = [sys.executable, "-m", "benchmarks.bare_nixl", str(block_bytes), str(blocks)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._peer: NixlEndpoint = decode(base64.b64decode(self._process.stdout.readline()), NixlEndpoint)
        self._agent = NixlAgent("bare-reader", [(0, np.zeros(block_bytes * blocks, np.uint8))], block_bytes, "lo")
        self._agent.meet(self._peer)
        self._ids = np.arange(blocks)
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    async def read(self) -> None:
        """Reads all blocks, on another thread."""
        await asyncio.to_thread(self._read)

    def close(self) -> None:
        """Ends the other process."""
        self._process.communicate()

    def _read(self) -> None:
        read = self._agent.begin(self._peer.name, self._ids, self._ids)
        while not self._agent.has_ended(read):
            time.sleep(0)  # lets the server's threads have the interpreter, as they do where a server polls
        self._agent.forget(read)


def _serve(block_bytes: int, blocks: int) -> None:
    memory = np.random.default_rng(0).integers(0, 256, block_bytes * blocks, np.uint8)
    agent = NixlAgent("bare-owner", [(0, memory)], block_bytes, "lo")
    print(base64.b64encode(encode(agent.endpoint)).decode(), flush=True)
    while not select.select([sys.stdin], [], [], 50e-6)[0]:
        agent.progress()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
