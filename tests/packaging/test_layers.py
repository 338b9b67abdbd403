"""Imports run one way only, and the rules of the house that a syntax tree can show hold in the library."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .repository import Module, library, project

# Lower floors know nothing of higher ones. Longer names come first: the first that fits decides.
FLOORS = (
    ("relaxprune.support", 0),  # files, memory and markup, whatever is in them
    ("relaxprune.problems", 0),
    ("relaxprune.solvers", 1),
    ("relaxprune.certificates", 2),
    ("relaxprune.solving.solution", 2),
    ("relaxprune.options.solve_options", 2),
    ("relaxprune.solving.comparison", 4),
    ("relaxprune.solving.comparison_plot", 4),
    ("relaxprune.solving", 3),
    ("relaxprune.options", 4),
    ("relaxprune.models", 4),
    ("relaxprune.text", 4),
    ("relaxprune.inputs", 4),
    ("relaxprune.pruning", 4),
    ("relaxprune.runs", 4),
    ("relaxprune.evaluation", 4),
    ("relaxprune.masks", 4),
    ("relaxprune.adapters.one_weight", 4),  # what the plugs share
    ("relaxprune.adapters", 5),  # other libraries' plugs
    ("relaxprune.report", 5),
    ("relaxprune.cli", 6),
    ("relaxprune.__main__", 7),
)
ROOT_NAME = "relaxprune"
DEVICE = re.compile(r"(cuda|mps|xpu|hip|rocm|npu|hpu)(:\d+)?")
MODULES = library()


def _floor(name: str) -> int | None:
    """Return the floor that a dotted name lives on; None for the root, whose names load lazily from any floor."""
    for prefix, floor in FLOORS:
        if name == prefix or name.startswith(prefix + "."):
            return floor
    return None


def _broken_imports(module: Module) -> list[str]:
    """List the imports of ``module`` that run upwards."""
    own = _floor(module.name)
    assert own is not None, f"{module.path}: give its floor in FLOORS"
    broken = []
    for name in module.imports():
        if name.partition(".")[0] != ROOT_NAME:
            continue
        floor = _floor(name)
        # The root's lazy names (relaxprune.solve) lead to every floor: only the top may use them.
        allowed = name == f"{ROOT_NAME}.__version__" if floor is None and own < 4 else floor is None or floor <= own
        if not allowed:
            broken.append(name)
    return broken


def _solver_files() -> set[str]:
    """Return the modules that the registry names as homes of solvers."""
    homes = set()
    for module in MODULES:
        if module.name == "relaxprune.solvers.registry":
            for node in ast.walk(module.tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found = re.fullmatch(r"(relaxprune\.solvers\.[\w.]+):[A-Z]\w*", node.value)
                    if found:
                        homes.add(found[1])
    return homes


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_imports_never_run_upwards(module: Module) -> None:
    if module.name == ROOT_NAME:
        return
    assert _broken_imports(module) == []


def test_no_solver_imports_another_solver() -> None:
    homes = _solver_files()
    assert homes, "solvers/registry.py names no solver in the form 'module:Class'"
    for module in MODULES:
        if module.name in homes:
            others = {home for name in module.imports() for home in homes if f"{name}.".startswith(f"{home}.")}
            assert others <= {module.name}, f"{module.path} imports {others - {module.name}}"
            # Asking for another solver by its name is an import in disguise.
            asked = {name for name in module.imports() if name.startswith("relaxprune.solvers.registry")}
            assert not asked, f"{module.path} imports {asked}"


def test_adapters_stand_alone() -> None:
    """No adapter imports another, nothing else imports one, and each is small."""
    shared = "relaxprune.adapters.one_weight"
    homes = {module.name for module in MODULES if module.name.startswith("relaxprune.adapters.")} - {shared}
    assert homes
    for module in MODULES:
        used = {home for name in module.imports() for home in homes if f"{name}.".startswith(f"{home}.")}
        assert used <= {module.name}, f"{module.path} imports {used - {module.name}}"
        if module.name in homes:
            code = [node for node in ast.walk(module.tree) if isinstance(node, ast.stmt)]
            assert len(code) <= 100, f"{module.path} has {len(code)} statements"


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_no_device_is_named_and_nothing_is_printed(module: Module) -> None:
    broken = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and DEVICE.fullmatch(node.value):
            broken.append(f"line {node.lineno}: names the device {node.value!r}")
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            broken.append(f"line {node.lineno}: calls .cuda()")
        if isinstance(node.func, ast.Name) and node.func.id == "print" and ".cli" not in module.name:
            broken.append(f"line {node.lineno}: prints")
    assert broken == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_nothing_unpickles(module: Module) -> None:
    names = set(module.imports()) | {
        f"torch.{node.attr}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    unsafe = ("pickle", "cPickle", "dill", "joblib", "torch.load")
    assert [name for name in names if name in unsafe or name.startswith(("pickle.", "dill."))] == []


def test_every_imported_package_is_a_declared_dependency() -> None:
    table = project()["project"]
    assert isinstance(table, dict)
    extras = [line for lines in table["optional-dependencies"].values() for line in lines]
    words = (re.match(r"[\w.-]+", line) for line in [*table["dependencies"], *extras])
    declared = {word[0].lower().replace("_", "-") for word in words if word}
    homes = packages_distributions()
    for module in MODULES:
        for top in {name.partition(".")[0] for name in module.imports()} - sys.stdlib_module_names - {ROOT_NAME}:
            owners = {owner.lower().replace("_", "-") for owner in homes.get(top, [top])}
            assert owners & declared, f"{module.path} imports {top}, which pyproject.toml does not declare"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from ..solving import solve", "relaxprune.solvers.x"),
        ("import relaxprune", "relaxprune.problems.x"),
        ("from relaxprune import solve", "relaxprune.solvers.x"),
        ("from relaxprune.solvers.base import run", "relaxprune.problems.polytopes.x"),
        ("from relaxprune.cli.app import app", "relaxprune.pruning.x"),
    ],
)
def test_the_check_sees_an_upward_import(source: str, name: str) -> None:
    assert _broken_imports(Module(name, Path("x.py"), ast.parse(source)))
