"""Guarantee: an access file says what it means or is refused, and a bad one never takes the place of a good one."""

import hashlib
import os
import re
import time
from pathlib import Path

import pytest

from statepool_server.access.rules import AccessFile, Role, Rules, roles_of
from statepool_server.access.watched import LOOK_SECONDS, Watched

ROOT = Path(__file__).parents[2]
HASH = hashlib.sha256(b"a token").hexdigest()


def read(folder: Path, text: str) -> Rules:
    """Reads a file with some text."""
    path = folder / "access.toml"
    path.write_text(text, encoding="utf-8")
    return Rules.read(path)


def test_example(tmp_path: Path) -> None:
    """The example of SECURITY.md is an access file."""
    (example,) = re.findall(r"```toml\n(.*?)```", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.DOTALL)
    rules = read(tmp_path, example)

    assert rules.tenants["acme"].max_blocks == 4096
    token = rules.find("test")
    assert token is not None
    assert (token.tenant, sorted(token.roles)) == ("acme", [Role.SCHEDULER])


BAD = {
    "no toml": ("[tenants", "access.toml"),
    "unknown key": ("[tenants.acme]\nmax-block = 1", "max-block"),
    "no such role": (
        f'[[tokens]]\nname = "a"\nroles = ["root"]\nsha256 = "{HASH}"',
        "roles are worker, scheduler, observer, admin",
    ),
    "no such tenant": (f'[[tokens]]\nname = "a"\nroles = []\ntenant = "b"\nsha256 = "{HASH}"', "no tenant 'b'"),
    "a token itself": ('[[tokens]]\nname = "a"\nroles = []\nsha256 = "a token"', "sha256"),
    "upper case": (f'[[tokens]]\nname = "a"\nroles = []\nsha256 = "{HASH.upper()}"', "sha256"),
    "no number": ('[tenants.acme]\nmax-calls = "many"', "max-calls"),
    "zero": ("[tenants.acme]\nmax-blocks = 0", "max-blocks"),
    "a name that certificates cannot have": ('[tenants."a/b"]', "access.toml"),
    "our own name": ("[tenants.statepool]", "'statepool'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name: str, tmp_path: Path) -> None:
    """What cannot be meant is refused, with the file and the fault; what might be a token is not repeated."""
    text, words = BAD[name]
    with pytest.raises(ValueError, match=r"^--access .*access\.toml: ") as refused:
        read(tmp_path, text)
    assert words in str(refused.value)
    assert "a token" not in str(refused.value)


def test_namespaces_of_a_tenant(tmp_path: Path) -> None:
    """By default a tenant has the namespace of its name and all below; a pattern covers what begins so, and no more."""
    rules = read(tmp_path, '[tenants.acme]\n[tenants.globex]\nnamespaces = ["a", "b*"]')
    acme, globex = rules.tenants["acme"], rules.tenants["globex"]

    assert [acme.owns(name, "acme") for name in ("acme", "acme/m", "acme2", "", "Acme")] == [True, True, *[False] * 3]
    assert [globex.owns(name, "globex") for name in ("a", "b", "bc", "ab", "globex", "")] == [
        *(True, True, True, False, False, False)
    ]


def test_tokens_are_found_by_their_hash(tmp_path: Path) -> None:
    """A token is found, its hash and parts of it are not."""
    rules = read(tmp_path, f'[[tokens]]\nname = "a"\nroles = ["admin"]\nsha256 = "{HASH}"')

    assert rules.find("a token") == rules.tokens[0]
    assert [rules.find(other) for other in (HASH, "a toke", "a token ", "", "ä")] == [None] * 5


def test_roles_of_a_setting() -> None:
    """Roles are listed by commas; none is none."""
    assert roles_of("worker, admin") == {Role.WORKER, Role.ADMIN}
    assert roles_of("none") == frozenset()
    for text in ("", "root", "none,worker"):
        with pytest.raises(ValueError, match="is no role"):
            roles_of(text)


def test_file_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is looked at once a second; one that has become unusable, or is gone, leaves what it said in force."""
    path, now = tmp_path / "number", [0.0]
    monkeypatch.setattr("statepool_server.access.watched.time.monotonic", lambda: now[0])
    path.write_text("1", encoding="ascii")
    watched = Watched([path], lambda: int(path.read_text(encoding="ascii")))

    def after_a_second(text: str | None) -> int | None:
        path.unlink()
        if text is not None:
            path.write_text(text, encoding="ascii")
            os.utime(path, ns=(0, 0))
        now[0] += LOOK_SECONDS
        return watched.refresh()

    assert watched.current == 1
    assert (after_a_second("22"), watched.current) == (22, 22)
    path.write_text("333", encoding="ascii")
    assert watched.refresh() is None, "it was looked at a moment ago"
    assert (after_a_second("x"), watched.current) == (None, 22)
    assert (after_a_second(None), watched.current) == (None, 22)
    path.write_text("4", encoding="ascii")
    assert (after_a_second("4"), watched.current) == (4, 4)


def test_file_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written a moment ago may be half of a file, and is left alone until nobody has written for a while."""
    path, now = tmp_path / "numbers", [0.0]
    monkeypatch.setattr("statepool_server.access.watched.time.monotonic", lambda: now[0])
    path.write_text("1 2", encoding="ascii")
    watched = Watched([path], lambda: path.read_text(encoding="ascii").split())

    def looked_at(seconds_ago: float) -> list[str]:
        written_ns = time.time_ns() - round(seconds_ago * 1e9)
        os.utime(path, ns=(written_ns, written_ns))
        now[0] += LOOK_SECONDS
        watched.refresh()
        return watched.current

    path.write_text("", encoding="ascii")
    assert looked_at(0.0) == ["1", "2"]
    path.write_text("3", encoding="ascii")
    assert looked_at(0.1) == ["1", "2"]
    assert looked_at(2.0) == ["3"]
    path.write_text("4", encoding="ascii")
    assert looked_at(-3600.0) == ["4"], "somebody has set the clock"


def test_without_a_file() -> None:
    """There are neither tenants nor tokens."""
    rules = AccessFile(None).rules

    assert (len(rules.tenants), len(rules.tokens), rules.find("")) == (0, 0, None)
