"""Servers for the tests on a device."""

from service.conftest import servers

__all__ = ["servers"]
