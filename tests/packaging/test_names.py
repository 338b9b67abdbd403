"""Public names: none is also a module's name, all are there, and the examples in docstrings run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import types
from pathlib import Path

import pytest

import relaxprune

from .repository import importable, packages


def _public(package: types.ModuleType) -> list[str]:
    """Return the names that a package offers, lazy ones too."""
    names = getattr(package, "__all__", None)
    return list(names) if names is not None else [name for name in dir(package) if not name.startswith("_")]


@pytest.mark.parametrize("name", packages())
def test_no_module_is_named_like_a_public_function(name: str) -> None:
    package = importlib.import_module(name)
    modules = {info.name for info in pkgutil.iter_modules(package.__path__)}
    offered = {item for item in _public(package) if not isinstance(getattr(package, item), types.ModuleType)}
    assert not offered & modules


@pytest.mark.parametrize("name", packages())
def test_every_offered_name_is_there(name: str) -> None:
    package = importlib.import_module(name)
    missing = [item for item in _public(package) if not hasattr(package, item)]
    assert missing == []


@pytest.mark.parametrize("name", importable())
def test_examples_in_docstrings(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_what_a_type_checker_reads_is_what_is_loaded() -> None:
    read = {}
    for node in ast.walk(ast.parse(Path(relaxprune.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and any(alias.asname for alias in node.names):
            home = f"relaxprune.{node.module}" if node.level else node.module
            read |= {alias.asname: home for alias in node.names}
    assert read == relaxprune._HOME
