"""Public names: none is also a module's name, all are there, and the examples in docstrings run."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import types

import pytest

from .repository import importable, library, packages


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


@pytest.mark.parametrize("name", packages())
def test_what_a_type_checker_reads_is_what_is_loaded(name: str) -> None:
    package = next(module for module in library() if module.name == name)
    calls = [node for node in ast.walk(package.tree) if isinstance(node, ast.Call)]
    homes = [ast.literal_eval(call.args[1]) for call in calls if ast.unparse(call.func) == "lazy"]
    read = {}
    for block in (node for node in package.tree.body if isinstance(node, ast.If)):
        for node in ast.walk(block):
            if isinstance(node, ast.ImportFrom):
                home = f".{node.module}" if node.level else str(node.module).removeprefix(name)
                read |= {alias.asname: home for alias in node.names}
    assert [read] == homes or not (read or homes)
