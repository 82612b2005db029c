"""Servers for the tests of monitoring; nothing in them is mocked."""

from service.conftest import servers

__all__ = ["servers"]
