"""Guarantee: an error can be handed to another process or copied, and stays what it was."""

import copy
import pickle
from collections.abc import Callable, Iterator

import pytest

from statepool.errors import BadFieldError, DivergedError, GroupError, StatepoolError

COPIES: list[Callable[[StatepoolError], StatepoolError]] = [
    copy.copy,
    copy.deepcopy,
    lambda error: pickle.loads(pickle.dumps(error)),  # noqa: S301 — it was written just now
]


def _classes(root: type[StatepoolError]) -> Iterator[type[StatepoolError]]:
    yield root
    for child in root.__subclasses__():
        yield from _classes(child)


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("cls", list(_classes(StatepoolError)))
def test_every_error_can_be_copied(
    cls: type[StatepoolError], copied: Callable[[StatepoolError], StatepoolError]
) -> None:
    """The class, the message and every attribute come along."""
    error = cls("why")
    error.field, error.retry_after, error.metadata = "count", 0.5, {"row": "3"}

    other = copied(error)

    assert (type(other), str(other), vars(other)) == (cls, "why", vars(error))


def test_the_members_of_a_group_that_are_at_fault() -> None:
    """The first one is named; a group error that names none says so in place of failing."""
    failures = {"unix:a": DivergedError("other"), "unix:b": BadFieldError("bad")}

    assert GroupError("lost", failures).member == "unix:a"
    assert (GroupError("lost").member, GroupError("lost").failures) == ("", {})
