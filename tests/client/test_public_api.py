"""Guarantee: the public names are complete, alike for sync and async, and cost no import that they do not need."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

import statepool
from statepool import errors
from statepool.rpc import RPCS
from statepool.v1 import admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2, transfer_pb2

METHODS: list[MethodDescriptor] = [
    method
    for module in (admin_pb2, block_pb2, pool_pb2, sequence_pb2, session_pb2, transfer_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
"""Every RPC of the protos."""

OTHER_NAMES = {"DeleteSession": "delete", "KeepAlive": "create_session", "Schedule": "scheduler"}
"""Client methods that are not named as their RPC: a session deletes itself, and is kept alive from its creation on."""

TWINS = [
    (statepool.Client, statepool.AsyncClient),
    (statepool.Session, statepool.AsyncSession),
    (statepool.Scheduler, statepool.AsyncScheduler),
    (statepool.Group, statepool.AsyncGroup),
]
NOT_AWAITED = {"scheduler"}
"""Methods that ask no server."""


def _public(cls: type) -> dict[str, Any]:
    return {name: value for name, value in inspect.getmembers(cls) if not name.startswith("_")}


def _sync_form(function: Callable[..., Any]) -> str:
    signature = str(inspect.signature(function)).replace("Async", "")
    return re.sub(r"Generator\[(\w+), None(, None)?\]", r"Generator[\1]", signature)


def test_all_is_sorted_and_holds() -> None:
    """``__all__`` is sorted, without repetition, and every name in it can be loaded."""
    assert statepool.__all__ == sorted(set(statepool.__all__))
    assert all(getattr(statepool, name) is not None for name in statepool.__all__)
    assert set(statepool.__all__) <= set(dir(statepool))


def test_type_checkers_find_the_names_that_programs_find() -> None:
    """What is imported for type checkers only is ``__all__``, each name from the module that it is loaded from."""
    for_checkers = next(node for node in ast.parse(inspect.getsource(statepool)).body if isinstance(node, ast.If))
    imports = [node for node in for_checkers.body if isinstance(node, ast.ImportFrom)]
    declared = [ast.unparse(node) for node in for_checkers.body if not isinstance(node, ast.ImportFrom)]

    assert sorted(alias.name for node in imports for alias in node.names) == statepool.__all__
    for node in imports:
        home = import_module(str(node.module))
        assert all(getattr(statepool, alias.name) is getattr(home, alias.name) for alias in node.names)
    assert declared == ["__version__: str"]
    assert statepool.__version__ == version("statepool")


def test_every_error_is_public() -> None:
    """The whole error tree can be caught by names of the package."""
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}

    assert tree <= set(statepool.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Loading names lazily does not change what a wrong name does."""
    with pytest.raises(AttributeError, match="has no attribute 'Clinet'"):
        _ = statepool.Clinet  # type: ignore[attr-defined]


def test_the_table_of_rpcs_is_that_of_the_protos() -> None:
    """Every RPC is in the client's table once, with its path and its message classes."""
    expected = {
        f"/{method.containing_service.full_name}/{method.name}": (
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
        )
        for method in METHODS
    }

    assert {rpc.path: (rpc.request_type, rpc.response_type) for rpc in RPCS} == expected
    assert len(RPCS) == len(expected)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_rpc_has_a_client_method(method: MethodDescriptor) -> None:
    """What the protos offer can be called on a client or a session, of both kinds."""
    name = OTHER_NAMES.get(method.name, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())

    for client, session in zip(TWINS[0], TWINS[1], strict=True):
        assert callable(getattr(client, name, None) or getattr(session, name, None))


@pytest.mark.parametrize(("blocking", "awaited"), TWINS)
def test_twins_have_the_same_methods(blocking: type, awaited: type) -> None:
    """Sync and async have the same public names, parameters, defaults and results; the async ones are awaited."""
    sync_members, async_members = _public(blocking), _public(awaited)

    assert sync_members.keys() == async_members.keys()
    for name, function in sync_members.items():
        twin = async_members[name]
        if isinstance(function, property) and function.fget is not None:
            assert inspect.signature(twin.fget) == inspect.signature(function.fget)
            continue
        if not inspect.isfunction(function):
            assert twin is function
            continue
        assert _sync_form(twin) == _sync_form(function)
        assert inspect.isasyncgenfunction(twin) == inspect.isgeneratorfunction(function)
        awaited_too = inspect.isasyncgenfunction(twin) or inspect.iscoroutinefunction(twin)
        assert awaited_too == (name not in NOT_AWAITED)


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import statepool",
        "import statepool.errors",
        "import statepool.layout",
        "import statepool.models",
        "import statepool.refs",
        "import statepool.shapes",
        "import statepool.status",
        "import statepool.units",
        "import statepool.wire",
        "from statepool import BlockRefs, PoolExhaustedError",
    ],
)
def test_what_needs_no_connection_needs_no_grpc(statement: str) -> None:
    """Shapes, layouts, refs, errors and codecs work where neither gRPC nor torch is installed."""
    assert not {"grpc", "torch", "triton", "statepool_server"} & _loaded_by(statement)


def test_the_clients_need_neither_torch_nor_numpy_to_be_imported() -> None:
    """Importing both clients loads gRPC, but not torch, not the server, and numpy only with the first call."""
    loaded = _loaded_by("from statepool import Client, AsyncClient")

    assert "grpc" in loaded
    assert not {"torch", "triton", "statepool_server", "numpy"} & loaded
