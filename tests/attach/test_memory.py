"""Guarantee: an attached process has the server's own bytes as tensors, and nothing else of it."""

import signal
from typing import NoReturn

import pytest
import torch

from attach.workers import Workers
from service.servers import IMAGE_BYTES, Server, Servers
from statepool import Client, Session
from statepool.torch import attach, attached, state_views


@pytest.mark.parametrize("arrangement", ["block-major", "layer-major"])
@pytest.mark.parametrize("rank_index", [0, 1])
def test_bytes_both_ways(servers: Servers, arrangement: str, rank_index: int) -> None:
    """What the worker writes is read over gRPC, and the other way round; another rank has other bytes."""
    server = servers.shared("--arrangement", arrangement)
    with server.client() as client, client.create_session(60.0) as session, attach(client, rank_index) as pool:
        mine, theirs = session.allocate_blocks(2)[0], session.allocate_blocks(1)
        image = bytes(range(256)) * (IMAGE_BYTES // 256)
        session.write_blocks(theirs, image, rank_index=rank_index)

        for view in pool.views.values():
            view[int(mine.block_ids[0])] = view[int(theirs.block_ids[0])]
        written = b"".join(chunk.data for chunk in session.read_blocks(mine, rank_index=rank_index))
        other = b"".join(chunk.data for chunk in session.read_blocks(mine, rank_index=1 - rank_index))

        layout = pool.description.layout.block
        for state, offset in zip(layout.states, layout.image_offsets, strict=True):
            assert written[offset : offset + state.nbytes] == image[offset : offset + state.nbytes]
        assert not any(other)


def test_tensors_of_layers(client: Client) -> None:
    """Each layer has its conv states first, then the others, with the shapes of the layout."""
    with attach(client) as pool:
        shapes = {layer: [tuple(tensor.shape[1:]) for tensor in tensors] for layer, tensors in pool.tensors.items()}

        assert shapes == {0: [(4, 8), (2, 4, 4)], 1: [(4, 8), (2, 4, 4)]}
        assert pool.tensors[1][0].data_ptr() == pool.views["layers.1.conv"].data_ptr()
        assert (
            pool.views.keys()
            == state_views(
                torch.empty(pool.description.layout.nbytes, dtype=torch.uint8), pool.description.layout
            ).keys()
        )


def test_what_cannot_be_used_is_not_kept(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no pool can be put on an attachment, as without a copy engine, the server waits for nobody."""
    with pytest.raises(ValueError, match=r"^copy_threads: 0 is below 1"):
        attach(client, copy_threads=0)
    monkeypatch.setattr(attached, "worker_engine", _no_engine)
    with pytest.raises(MemoryError):
        attach(client)

    assert client.list_attachments() == []


def _no_engine(*arguments: object) -> NoReturn:
    raise MemoryError


def test_readers_cannot_write(server: Server, client: Client, session: Session, workers: Workers) -> None:
    """A process that attached to read sees the bytes; writing kills it, and the bytes stay."""
    blocks = session.allocate_blocks(1)
    block = int(blocks.block_ids[0])
    session.write_blocks(blocks, bytes([7]) * IMAGE_BYTES)
    reader = workers.start(server, read_only=True)

    seen = reader.ask("peek", block)
    reader.send("fill", block, 9)

    assert seen == 7
    assert reader.wait() == -signal.SIGSEGV
    assert {byte for chunk in session.read_blocks(blocks) for byte in chunk.data} == {0, 7}  # 0: padding
    with attach(client, read_only=True) as pool, pytest.raises(RuntimeError), pool.writing(1, 1):
        pass


def test_forked_processes_have_nothing(server: Server, session: Session, workers: Workers) -> None:
    """A process forked from a worker has neither the memory nor the attachment; the worker goes on."""
    block = int(session.allocate_blocks(1).block_ids[0])
    worker = workers.start(server)

    statuses = worker.ask("fork", block)
    worker.ask("fill", block, 5)

    assert statuses == [-signal.SIGSEGV, 7]
    assert worker.ask("peek", block) == 5


def test_tensors_outlive_the_attachment_harmlessly(client: Client, session: Session) -> None:
    """After closing, tensors that are still around see zeros, and writing to them reaches nobody."""
    blocks = session.allocate_blocks(1)
    block = int(blocks.block_ids[0])
    pool = attach(client)
    view = pool.views["layers.0.ssm"]
    view[block] = 3

    pool.close()
    pool.close()
    before = float(view[block].sum())
    view[block] = 4

    assert before == 0
    assert client.list_attachments() == []
    written = next(iter(session.read_blocks(blocks))).data
    assert torch.frombuffer(bytearray(written[:128]), dtype=torch.float32).tolist() == [3.0] * 32
    with pytest.raises(RuntimeError, match="inside of"):
        attach_and_copy_outside(client)


def attach_and_copy_outside(client: Client) -> None:
    """Runs copies that belong to no pass."""
    with attach(client) as pool:
        pool.run_copies(None)  # type: ignore[arg-type]  # refused before it is looked at
