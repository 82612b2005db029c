"""Guarantee: the log keeps the newest batches within its bytes, and gives them out without a gap."""

from statepool_server.service.event_log import EventLog


def _log(max_bytes: int, batches: int) -> EventLog:
    log = EventLog(max_bytes)
    for number in range(1, batches + 1):
        log.append(b"%02d" % number)
    return log


def test_the_oldest_make_room() -> None:
    """As many as fit are kept, and what is behind any of them, or behind the last that was dropped, can be told."""
    log = _log(max_bytes=6, batches=10)

    assert (log.last, log.nbytes) == (10, 6)
    assert [number for number in range(12) if log.reaches(number)] == [7, 8, 9, 10]
    assert log.behind(7, 100) == (b"080910", 10)


def test_messages_are_bounded() -> None:
    """What is joined ends before it is too long, but has one batch at least."""
    log = _log(max_bytes=100, batches=10)

    assert log.behind(2, 5) == (b"0304", 4)
    assert log.behind(2, 1) == (b"03", 3)
    assert log.behind(10, 5) == (b"", 10)


def test_the_newest_is_kept_whatever_its_size() -> None:
    """A batch larger than the bound takes the place of all others."""
    log = _log(max_bytes=6, batches=3)
    log.append(bytes(50))

    assert log.behind(3, 1) == (bytes(50), 4)
    assert not log.reaches(2)


def test_age() -> None:
    """The age of what is behind a batch is that of the first of it that is kept."""
    now = 10.0
    log = EventLog(4, lambda: now)
    for number in range(1, 5):
        log.append(b"%02d" % number)
        now += number

    assert [log.age(number) for number in range(5)] == [7.0, 7.0, 7.0, 4.0, 0.0]
