"""Guarantee: tokens of callers, attachments and transfers stand in no log and in nothing that is printed."""

import base64
import dataclasses
import importlib
import pkgutil
import types
from collections.abc import Iterator

import msgspec
import pytest

import statepool
import statepool_server
from security.authority import Authority
from security.conftest import client_of, token_of
from service.servers import DEADLINE_SECONDS, Server
from statepool import Client, PeerUntrustedError, TransferNotFoundError
from statepool.calls.transfers import cancel_transfer

SECRET_NAMES = {"token", "authorization", "password", "secret"}
"""Names of fields that hold a secret, wherever they stand."""


def modules() -> Iterator[types.ModuleType]:
    """Imports all of the client and the server that needs no device."""
    for package in (statepool, statepool_server):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith(("__main__", "_pb2_grpc", "triton_kernels")):
                yield importlib.import_module(found.name)


def test_no_class_prints_a_secret() -> None:
    """Every dataclass leaves the fields that are named so out of its repr; no struct of a file has any."""
    classes = {value for module in modules() for value in vars(module).values() if isinstance(value, type)}
    written = {cls for cls in classes if "__dataclass_params__" in vars(cls)}
    found = {
        (cls.__qualname__, field.name)
        for cls in written
        if vars(cls)["__dataclass_params__"].repr  # else its repr is written by hand
        for field in dataclasses.fields(cls)
        if field.name in SECRET_NAMES and field.repr
    }
    structs = {
        (cls.__qualname__, name)
        for cls in classes
        if issubclass(cls, msgspec.Struct)
        for name in cls.__struct_fields__
        if name in SECRET_NAMES
    }

    assert len(written) > 100  # they have been found at all
    assert not found | structs


def forms(secret: bytes) -> Iterator[str]:
    """Writes a secret in every way that something might print it."""
    yield secret.hex()
    yield repr(secret)[2:-1]
    yield base64.b64encode(secret).decode()
    if secret.isascii():
        yield secret.decode()


@pytest.mark.parametrize("kind", ["attachment", "transfer", "caller"])
def test_no_secret_in_the_log(secured: Server, scheduler: Client, authority: Authority, kind: str) -> None:
    """With a line per call, not one shows a secret, whether it was accepted, wrong, or in a place of its own."""
    secret = {"attachment": _attach, "transfer": _lend, "caller": _call}[kind](secured, scheduler, authority)

    for form in forms(secret):
        assert form not in secured.log


def _attach(secured: Server, scheduler: Client, authority: Authority) -> bytes:
    with Client(secured.target, tls=authority.tls_as("worker"), timeout=DEADLINE_SECONDS) as worker:
        offer = worker.attach_pool()
    assert not [form for form in forms(offer.token) if form in repr(offer)]
    return offer.token


def _lend(_secured: Server, scheduler: Client, _authority: Authority) -> bytes:
    with scheduler.create_session(60.0) as session:
        transfer = session.create_transfer(session.allocate_blocks(1))
        wrong = dataclasses.replace(transfer, transfer_id=transfer.transfer_id + 1)
        with pytest.raises(TransferNotFoundError) as caught:
            list(scheduler.pull_blocks(wrong))
        printed = [transfer, wrong, caught.value, cancel_transfer(transfer)]
        assert not [form for form in forms(transfer.token) if form in "".join(map(repr, printed))]
        scheduler.cancel_transfer(transfer)
    return transfer.token


def _call(secured: Server, _scheduler: Client, authority: Authority) -> bytes:
    token = token_of("everybody")
    with client_of(secured, authority, "everybody") as client:
        client.get_pool()
        assert token not in repr(client)
    with Client(secured.target, tls=authority.tls(), token=f"{token}x", timeout=DEADLINE_SECONDS) as client:
        with pytest.raises(PeerUntrustedError) as caught:
            client.get_pool()
        assert token not in repr(caught.value) + str(caught.value)
    return token.encode()
