"""Guarantee: a worker maps a server's device memory as it maps host memory, and the rules hold for its kernels too."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attach.test_execution import PLAIN, SPECULATIVE, nothing, run_scenario, server_for
from service.servers import CAPACITY, IMAGE_BYTES, Server, Servers, until
from statepool import Client, Execution
from statepool.torch import AttachedPool, attach
from statepool.torch.triton_kernels import INTERPRETED

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process; `make gpu` compiles them"),
]
ON_DEVICE = ("--device", "cuda:0")
ALL = [*PLAIN, *SPECULATIVE]
STATE = "layers.0.ssm"
LARGE = {"name": STATE, "kind": "temporal", "shape": (2**20,), "dtype": "int8"}

ATTACH = """
import sys, torch
from statepool import Client
from statepool.torch import attach
with Client(sys.argv[1]) as client, attach(client, read_only=True) as pool:
    view = pool.views[sys.argv[2]]
    print(view.float().sum().item(), flush=True)
    view.fill_(1)
    torch.cuda.synchronize()
    print("written", flush=True)
"""


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server on the device."""
    return servers.shared(*ON_DEVICE)


def reader(server: Server, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a process that attaches to read only, and then writes."""
    return subprocess.run(
        [sys.executable, "-c", ATTACH, server.target, STATE],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_both_see_the_same_bytes(server: Server) -> None:
    """What the server writes the worker sees in tensors on the device, and the other way round."""
    with server.client() as client, client.create_session(60.0) as session, attach(client) as pool:
        blocks = session.allocate_blocks(1)
        block, view = int(blocks.block_ids[0]), pool.views[STATE]
        session.write_blocks(blocks, b"\1" * IMAGE_BYTES)
        seen = view[block].view(torch.uint8).cpu()
        with pool.writing(session.session_id, session.epoch):
            for state in pool.views.values():
                state[block].view(torch.uint8).fill_(2)
            torch.cuda.synchronize()
        image = b"".join(chunk.data for chunk in session.read_blocks(blocks))
        state_bytes = sum(state[block].nbytes for state in pool.views.values())

    assert view.device == torch.device("cuda:0")
    assert bool((seen == 1).all())
    assert image.count(b"\2") == state_bytes


def test_attaching_takes_no_memory_and_closing_gives_it_back(servers: Servers, tmp_path: Path) -> None:
    """A worker maps gigabytes without any of its own; when both are gone, the device has them again."""
    torch.zeros(1, device="cuda")
    before = torch.cuda.mem_get_info()[0]
    server = large(servers, tmp_path)
    with server.client() as client:
        size = client.get_pool().layout.nbytes
        held = torch.cuda.mem_get_info()[0]
        with attach(client, read_only=True):
            attached = torch.cuda.mem_get_info()[0]
    server.stop()

    assert before - held >= size
    assert held - attached < size // 8
    until(lambda: before - torch.cuda.mem_get_info()[0] < size // 8, "the device's memory to be given back")


def test_far_into_a_large_arena(servers: Servers, tmp_path: Path) -> None:
    """Offsets beyond 32 bits are right in the server's copies and in the worker's views."""
    server = large(servers, tmp_path)
    with server.client() as client, client.create_session(60.0) as session, attach(client) as pool:
        blocks = session.allocate_blocks(client.get_pool().capacity, zero=False)
        first, last = int(blocks.block_ids[0]), int(blocks.block_ids[-1])
        view = pool.views[STATE]
        with pool.writing(session.session_id, session.epoch):
            view[first], view[last] = 3, 4
            torch.cuda.synchronize()
        session.copy_blocks(src=blocks[-1:], dst=blocks[:1], token_bias=0)

        assert bool((view[first] == 4).all())
        assert abs(last - first) * 2**20 > 2**32


@pytest.mark.parametrize("scenario", [scenario for _, scenario in ALL], ids=[name for name, _ in ALL])
def test_worker_as_server(servers: Servers, scenario: dict[str, Any]) -> None:
    """Every pass finds the same state, whether the server or the worker has zeroed and copied before it."""
    by_server = run_scenario(server_for(servers, scenario, *ON_DEVICE), scenario, Execution.SERVER, nothing)
    by_worker = run_scenario(
        server_for(servers, scenario, *ON_DEVICE), scenario, Execution.WORKER, AttachedPool.run_copies
    )

    assert any(state.any() for state in by_server)
    assert len(by_server) == len(by_worker)
    assert all(torch.equal(one, other) for one, other in zip(by_server, by_worker, strict=True))


def test_a_reader_cannot_write(server: Server) -> None:
    """Its kernel fails; the bytes stay as they were."""
    ended = reader(server)
    with server.client() as client, attach(client, read_only=True) as pool:
        ones = sum(int((view == 1).sum()) for view in pool.views.values())

    assert ended.stdout.count("\n") == 1, ended.stdout
    assert ended.returncode != 0
    assert "CUDA error" in ended.stderr
    assert ones == 0


def test_a_process_that_does_not_see_the_device(server: Server) -> None:
    """It is told so, and is not attached."""
    ended = reader(server, CUDA_VISIBLE_DEVICES="")
    with server.client() as client:
        until(lambda: client.list_attachments() == [], "the process to be taken off the list")

    assert "FeatureUnavailableError" in ended.stderr


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_process_that_counts_devices_otherwise(servers: Servers) -> None:
    """It finds the device by its UUID."""
    ended = reader(servers.shared("--device", "cuda:1"), CUDA_VISIBLE_DEVICES="1,0")

    assert ended.stdout.count("\n") == 1, ended.stderr


def test_a_fence_waits_for_kernels(server: Server) -> None:
    """A lost session's blocks are nobody's until what its passes have queued is done."""
    with server.client() as client, server.client() as owner, attach(client) as pool:
        lost = owner.create_session(60.0)
        (block,) = lost.allocate_blocks(1).block_ids.tolist()
        with pool.writing(lost.session_id, lost.epoch):
            torch.cuda._sleep(10**9)  # type: ignore[no-untyped-call]  # noqa: SLF001 — keeps the device busy
            pool.views[STATE][block].view(torch.uint8).fill_(7)
        lost.delete()
        until(lambda: client.get_pool().usage.free_blocks == CAPACITY, "the worker's answer")
        with client.create_session(60.0) as session:
            blocks = session.allocate_blocks(CAPACITY, zero=False)
            index = blocks.block_ids.tolist().index(block)
            image = b"".join(chunk.data for chunk in session.read_blocks(blocks[index : index + 1]))
        size = pool.views[STATE][block].nbytes

    assert image.count(b"\7") == size, "the block was given out before the kernel had written it"


def test_the_memory_outlives_its_server(servers: Servers) -> None:
    """A worker whose server is killed learns of it, and its kernels do not fault."""
    server = servers.start(*ON_DEVICE).wait_until_ready()
    client = Client(server.target, timeout=5.0)
    pool = attach(client, read_only=True)
    view = pool.views[STATE]

    server.process.send_signal(signal.SIGKILL)
    server.wait()
    until(lambda: pool.error is not None, "the worker to learn of it")
    total = float(view.float().sum())
    torch.cuda.synchronize()
    pool.close()
    client.close()

    assert total == 0


def large(servers: Servers, folder: Path) -> Server:
    """Starts a server with 5 GiB of blocks of 1 MiB."""
    model = folder / "large.json"
    model.write_text(json.dumps({"model_type": "custom", "states": [LARGE]}), encoding="utf-8")
    flags = ("--model-config", str(model), "--tp-size", "1", "--blocks", str(5 * 2**10), "--max-batch", "8192")
    return servers.start(*flags, *ON_DEVICE).wait_until_ready()
