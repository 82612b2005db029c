"""Guarantee: what the guides to the client and to the protocol show works, and what they list exists."""

import re
from pathlib import Path
from typing import Any

import pytest

import statepool
from security.authority import Authority
from service.conftest import plain_stubs
from service.servers import CAPACITY, Server, Servers
from service.test_readme import names_after
from statepool import PoolExhaustedError, Session, prefix_hashes
from statepool.rpc import RPCS
from statepool.v1 import session_pb2

_ROOT = Path(__file__).parents[2]
CLIENT = (_ROOT / "client" / "README.md").read_text(encoding="utf-8")
PROTOCOL = (_ROOT / "protos" / "README.md").read_text(encoding="utf-8")
CONNECTIONS, ALLOCATE, OWNER, HASHES = re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL)
(RAW,) = re.findall(r"```python\n(.*?)```", PROTOCOL, re.DOTALL)


def test_connections(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either client is made from what is there, and does not connect yet."""
    authority = Authority(tmp_path)
    authority.client().replace_by(authority.client())
    (tmp_path / "1.cert.pem").rename(tmp_path / "scheduler.pem")
    (tmp_path / "1.key.pem").rename(tmp_path / "scheduler.key")
    monkeypatch.chdir(tmp_path)

    names = names_after(CONNECTIONS, server)

    with names["local"] as local, names["remote"]:
        assert local.get_pool().capacity == CAPACITY


def test_a_full_pool(server: Server, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    """The example waits for blocks as often as it says, and tells the numbers."""
    session.allocate_blocks(CAPACITY - 1)
    allocate: Any = names_after(ALLOCATE, server)["allocate"]

    assert len(allocate(session, 1)) == 1
    with pytest.raises(RuntimeError, match="stays full"):
        allocate(session, 2, attempts=2)

    assert capsys.readouterr().out.count("0 blocks are free, 2 were asked for") == 2
    with pytest.raises(PoolExhaustedError):
        session.allocate_blocks(2)


def test_an_owner(server: Server) -> None:
    """Who opens the session again has taken it over, and the one before is told."""
    opened: Any = names_after(OWNER, server)["open_scheduler"]
    lost: list[Session] = []
    with server.client() as before, server.client() as after:
        first = opened(before, lambda session, _reason: lost.append(session))
        with opened(after, None) as second:
            assert second.session_id == first.session_id
            assert second.epoch > first.epoch
            with pytest.raises(statepool.SessionFencedError):
                first.allocate_blocks(1)
    assert lost == [first]


def test_hashes(servers: Servers, server: Server) -> None:
    """The client's example and the protocol's rule give what is written beside them."""
    names = names_after(HASHES, server)

    assert (len(names["hashes"]), names["chunk"]) == (2, 512)
    assert "\n".join(digest.hex() for digest in prefix_hashes([1, 2, 3, 4], 2)) in PROTOCOL


def test_without_the_client_library(server: Server) -> None:
    """The generated code is enough for a step."""
    names = names_after(RAW, server)

    assert len(names["blocks"]) == 1
    with plain_stubs(server) as stubs:
        stubs.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session=names["session"].ref))


def test_what_is_listed() -> None:
    """Every error in the client's table is one, and the protocol's table has every service and names their RPCs."""
    errors = re.findall(r"`(\w+Error)`", CLIENT)
    assert [name for name in errors if not hasattr(statepool, name)] == []

    services = {rpc.path.split("/")[1].rpartition(".")[2] for rpc in RPCS}
    assert services == set(re.findall(r"^\| `(\w+)` \|", PROTOCOL, re.MULTILINE))
    methods = {rpc.path.rpartition("/")[2] for rpc in RPCS}
    assert set(re.findall(r"`((?:Watch|Create|Keep|Step|Schedule)\w*)`", PROTOCOL)) - {"Schedule"} <= methods | {"Step"}
