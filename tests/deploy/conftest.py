"""Servers, clients and sessions for the tests of deployments; nothing in them is mocked."""

from service.conftest import client, server, servers

__all__ = ["client", "server", "servers"]
