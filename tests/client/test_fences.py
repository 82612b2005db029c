"""Guarantee: a fence is answered when no pass that it concerns runs, and from its arrival on none begins."""

import pytest

from statepool.errors import SessionFencedError, UnavailableError
from statepool.fences import REMEMBERED_SESSIONS, Fence, Fences
from statepool.framing import MAX_FRAME_BYTES, FrameReader, frame
from statepool.v1 import attach_pb2 as pb


def test_answered_at_once() -> None:
    """Without a pass there is nothing to wait for; an answer is given once."""
    fences = Fences(0, {})

    fences.add(Fence(1, 7, 2))

    assert fences.take_quiet() == [Fence(1, 7, 2)]
    assert fences.take_quiet() == []


def test_waits_for_the_passes_that_it_concerns() -> None:
    """Passes of the epoch and of earlier ones, all of them; not those of later epochs and of other sessions."""
    fences = Fences(0, {})
    with fences.running(7, 3), fences.running(8, 1):
        with fences.running(7, 2):
            with fences.running(7, 2), fences.running(7, 1):
                fences.add(Fence(1, 7, 2))
                assert fences.take_quiet() == []
            assert fences.take_quiet() == []

        assert [fence.number for fence in fences.take_quiet()] == [1]


def test_one_does_not_hold_another_up() -> None:
    """A fence is answered although one that came before it still waits."""
    fences = Fences(0, {})
    with fences.running(7, 1):
        fences.add(Fence(1, 7, 1))
        fences.add(Fence(2, 8, 1))

        assert [fence.number for fence in fences.take_quiet()] == [2]

    assert [fence.number for fence in fences.take_quiet()] == [1]


def test_no_pass_begins_behind_a_fence() -> None:
    """Not for the epoch nor for an earlier one, even if an older fence comes late; a failed pass has ended as well."""
    fences = Fences(0, {})
    fences.add(Fence(2, 7, 2))
    fences.add(Fence(1, 7, 1))

    for epoch in (1, 2):
        with pytest.raises(SessionFencedError), fences.running(7, epoch):
            pass
    with pytest.raises(ZeroDivisionError), fences.running(7, 3):
        _ = 1 // 0
    fences.add(Fence(3, 7, 3))

    assert [fence.number for fence in fences.take_quiet()] == [2, 1, 3]


def test_what_was_lost_before() -> None:
    """Of the sessions given out before the process attached, only those that lived go on, from their epochs on."""
    fences = Fences(9, {7: 2})

    for session_id, epoch in ((7, 1), (8, 1), (9, 5)):
        with pytest.raises(SessionFencedError), fences.running(session_id, epoch):
            pass
    for session_id, epoch in ((7, 2), (7, 3), (10, 1)):
        with fences.running(session_id, epoch):
            pass
    fences.add(Fence(1, 10, 1))
    with pytest.raises(SessionFencedError), fences.running(10, 1):
        pass


def test_no_pass_begins_without_a_connection() -> None:
    """When nobody can fence this process any more, every new pass gets the reason."""
    fences = Fences(0, {})
    with fences.running(7, 1):
        fences.close(UnavailableError("gone"))

    for _ in range(2):
        with pytest.raises(UnavailableError, match="gone"), fences.running(7, 1):
            pass


def test_memory_is_bounded() -> None:
    """Only so many lost sessions are remembered, the latest of them."""
    fences = Fences(0, {})
    for number in range(1, REMEMBERED_SESSIONS + 3):
        fences.add(Fence(number, number, 1))

    with fences.running(1, 1), fences.running(2, 1):
        pass
    with pytest.raises(SessionFencedError), fences.running(3, 1):
        pass


def test_frames_in_any_pieces() -> None:
    """Messages come out as they went in, wherever the bytes are cut; a length that cannot be is refused."""
    messages = [pb.WorkerFrame(hello=pb.Hello(token=bytes([n]) * n)) for n in (0, 1, 16, 200)]
    data = b"".join(map(frame, messages))

    for size in (1, 3, 7, len(data)):
        reader = FrameReader()
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        read = [pb.WorkerFrame.FromString(message) for piece in pieces for message in reader.feed(piece)]
        assert read == messages

    with pytest.raises(ValueError, match=str(MAX_FRAME_BYTES + 1)):
        list(FrameReader().feed((MAX_FRAME_BYTES + 1).to_bytes(4, "little")))
