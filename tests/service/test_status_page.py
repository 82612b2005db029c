"""Guarantee: the status page loads nothing from elsewhere, and what it is told is true and no secret."""

import json
import re
from typing import Any

import pytest

from service.scraping import FLAGS, get
from service.servers import BLOCK_TOKENS, CAPACITY, Server, Servers
from statepool import Client, Session


@pytest.fixture
def server(servers: Servers) -> Server:
    """Gives a server with an HTTP listener."""
    return servers.shared(*FLAGS)


def status(server: Server) -> dict[str, Any]:
    """Asks as the page does."""
    with get(server, "/status.json") as response:
        return dict(json.load(response))


def test_files(server: Server) -> None:
    """Every file that the page names is served, with its type, and no other place is named in any."""
    with get(server, "/") as response:
        page = response.read().decode()
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.headers["Content-Security-Policy"] == "default-src 'self'; frame-ancestors 'none'"
    named = re.findall(r'(?:src|href)="([^"]+)"', page)

    assert sorted(named) == ["page.css", "page.js"]
    assert "<script>" not in page
    assert "style=" not in page
    for name in named:
        with get(server, f"/{name}") as response:
            text = response.read().decode()
        assert response.headers["Content-Type"].startswith({"css": "text/css", "js": "text/javascript"}[name[5:]])
        assert re.findall(r"[a-z]+://|[\"'(]//|@import|url\(", text) == []


def test_status(server: Server, client: Client, session: Session) -> None:
    """Map, usage and sessions are those of the pool."""
    blocks = session.allocate_blocks(3, zero=False)
    session.commit_blocks(
        blocks[:1], prefix_hashes=[b"secret"], boundary_tokens=[BLOCK_TOKENS], written_through_tokens=[BLOCK_TOKENS]
    )
    told = status(server)
    while told["usage"]["held"] != 3:  # what others were told a moment ago
        told = status(server)

    cells = told["map"]["cells"]
    assert told["map"]["blocks_per_cell"] == 1
    assert len(cells) == told["capacity"] == CAPACITY
    assert [cells[block - 1] for block in blocks.block_ids.tolist()] == ["s", "o", "o"]
    (mine,) = told["sessions"]
    assert (mine["session_id"], mine["blocks"]) == (session.session_id, 3)
    assert 0 < mine["seconds_left"] <= 60
    assert told["totals"]["allocated blocks"] >= 3
    assert told["dead_parts"] == {}


def test_secrets(server: Server, client: Client) -> None:
    """Owner keys, which allow a take-over, and prefix hashes are not told; nor are they in the metrics."""
    with client.create_session(60.0, owner_key="the-key-of-the-owner") as session:
        block = session.allocate_blocks(1, zero=False)
        session.commit_blocks(
            block,
            prefix_hashes=[b"a-hash-of-a-prompt"],
            boundary_tokens=[BLOCK_TOKENS],
            written_through_tokens=[BLOCK_TOKENS],
            namespace="the-name-of-a-tenant",
        )
        told = json.dumps(status(server))
        with get(server, "/metrics") as response:
            told += response.read().decode()

    for secret in ("the-key-of-the-owner", "a-hash-of-a-prompt", b"a-hash-of-a-prompt".hex(), "the-name-of-a-tenant"):
        assert secret not in told
