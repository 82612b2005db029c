"""Servers for the test of the status page; nothing in it is mocked."""

from service.conftest import servers

__all__ = ["servers"]
