"""Guarantee: the reference is written without a warning, and nothing public in it is without words."""

import ast
import re
import subprocess
from collections.abc import Iterator
from enum import Enum
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
from pdoc.doc import Class, Doc, Module, Variable
from pdoc.extract import load_module

import statepool

ROOT = Path(__file__).parents[2]
_ALL = re.findall(r"^PUBLIC := statepool .*statepool\.,(.*)\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
MODULES = ["statepool", *(f"statepool.{name}" for names in _ALL for name in names.split())]


def module(name: str) -> Module:
    """Loads a module with all its names."""
    for each in statepool.__all__:
        getattr(statepool, each)
    return Module(load_module(name))


def public(parent: Module | Class) -> Iterator[tuple[Module | Class, Doc[object]]]:
    """Yields what is public, and what it belongs to."""
    for member in parent.own_members if isinstance(parent, Class) else parent.members.values():
        if not member.name.startswith("_"):
            yield parent, member
            if isinstance(member, Class):
                yield from public(member)


def documented_variables() -> set[str]:
    """Collects the names of all variables of modules that have words of their own where they are defined."""
    found = set()
    for path in (ROOT / "client/statepool").rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for statement, after in pairwise(body):
            targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def has_words(parent: Module | Class, member: Doc[object], variables: set[str]) -> bool:
    """Tells whether something is explained: by itself, by its class or a base of it, or where it comes from."""
    if member.docstring:
        return True
    if not isinstance(member, Variable):
        return False
    if not isinstance(parent, Class):
        return member.name in variables
    told = " ".join(base.__doc__ or "" for base in parent.obj.__mro__)
    return issubclass(parent.obj, Enum) or re.search(rf"^ +{member.name}:", told, re.MULTILINE) is not None


@pytest.mark.parametrize("name", MODULES)
def test_everything_has_words(name: str) -> None:
    """Modules, classes, methods, functions, attributes and constants."""
    loaded, variables = module(name), documented_variables()
    listed = list(public(loaded))

    assert len(MODULES) >= 8
    assert loaded.docstring
    assert len(listed) >= 3
    assert [member.fullname for parent, member in listed if not has_words(parent, member, variables)] == []


def test_reference(tmp_path: Path) -> None:
    """`make docs` has no warning, a page for each module, and no markup that is only seen in the source."""
    command = ["make", "-o", ".venv/ready", "docs", f"DOCS={tmp_path}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    for name in MODULES:
        page = (tmp_path / f"{name.replace('.', '/')}.html").read_text(encoding="utf-8")
        assert "::</p>" not in page
        assert "allocate_blocks" in unescape(page) or name != "statepool"
