"""Imports run one way only, and the rules of the house that a syntax tree can show hold in the library."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from .repository import Module, library, project

# The house from the ground up, its rooms by the start of their modules' names; the longest one that fits decides. A
# module imports from its own room and from lower floors, never from its own floor's other rooms.
FLOORS = (
    ("problems.errors",),
    ("problems.precision", "problems.checks"),
    ("problems.polytopes",),
    ("problems",),
    ("problems.__init__",),
    ("solvers",),  # what all solvers are made of
    ("solvers.exchange.engine",),
    ("solvers.frank_wolfe.engine", "solvers.projection.engine", "solvers.weights.engine", "solvers.reference.engine"),
    ("solvers.exchange", "solvers.frank_wolfe", "solvers.projection", "solvers.weights", "solvers.reference"),
    ("solvers.registry",),
    ("solvers.__init__",),
    ("support",),
    ("residency", "ranks"),
    ("options",),
    ("certificates.verify",),
    ("certificates.sdp",),
    ("certificates",),
    ("solving",),
    ("models",),
    ("text",),
    ("advice",),
    ("evaluation",),
    ("inputs",),
    ("costs",),
    ("pruning.channels", "pruning.objectives", "pruning.sharing", "pruning.tuning"),
    ("pruning",),
    ("rotation.learners",),
    ("rotation", "forecast"),
    ("runs",),
    ("masks", "layer_files"),
    ("conversion",),
    ("adapters.one_weight",),  # what the plugs share
    ("adapters",),  # other libraries' plugs
    ("report",),
    ("timing",),
    ("__init__",),  # the public names, which load lazily from every room
    ("cli",),
    ("__main__",),
)
ROOT_NAME = "relaxprune"
VERSION = f"{ROOT_NAME}.__version__"  # a plain string, which every room may read
DEVICE = re.compile(r"(cuda|mps|xpu|hip|rocm|npu|hpu)(:\d+)?")
MODULES = library()
NAMES = {module.name: module for module in MODULES}


def _room(module: Module) -> tuple[int, str]:
    """Return the floor and the room of a module."""
    own = f"{module.name}.__init__" if module.path.name == "__init__.py" else module.name
    rooms = {f"{ROOT_NAME}.{name}": floor for floor, names in enumerate(FLOORS) for name in names}
    fitting = [name for name in rooms if f"{own}.".startswith(f"{name}.")]
    assert fitting, f"{module.path}: give its room in FLOORS"
    room = max(fitting, key=len)
    return rooms[room], room


def _imported(module: Module) -> Iterator[Module]:
    """Yield the library's modules that a module imports, anywhere in it: inside functions and for types too."""
    for name in module.imports():
        if name.partition(".")[0] == ROOT_NAME and name != VERSION:
            while name not in NAMES:
                name = name.rpartition(".")[0]
            yield NAMES[name]


def _broken_imports(module: Module) -> list[str]:
    """List the modules that ``module`` imports from above, or from another room beside its own."""
    floor, room = _room(module)
    rooms = ((other.name, *_room(other)) for other in _imported(module))
    return [name for name, other_floor, other_room in rooms if other_room != room and other_floor >= floor]


def _circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle in a graph, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


@functools.cache
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
def test_imports_lead_to_lower_floors(module: Module) -> None:
    assert _broken_imports(module) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {module.name: {other.name for other in _imported(module)} for module in MODULES}
    assert _circle(graph) == []


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
    homes = {"modelopt": ["nvidia-modelopt"], **packages_distributions()}  # it may not be installed here
    for module in MODULES:
        for top in {name.partition(".")[0] for name in module.imports()} - sys.stdlib_module_names - {ROOT_NAME}:
            owners = {owner.lower().replace("_", "-") for owner in homes.get(top, [top])}
            assert owners & declared, f"{module.path} imports {top}, which pyproject.toml does not declare"


@pytest.mark.parametrize(
    ("source", "name", "broken"),
    [
        ("from ..solving import solving", "relaxprune.solvers.x", "relaxprune.solving.solving"),
        ("import relaxprune", "relaxprune.problems.x", "relaxprune"),
        ("from relaxprune import solve", "relaxprune.solvers.x", "relaxprune"),
        ("from relaxprune.solvers.base import run", "relaxprune.problems.polytopes.x", "relaxprune.solvers.base"),
        ("def f():\n    from relaxprune.cli.app import app", "relaxprune.pruning.x", "relaxprune.cli.app"),
        ("from ..sharing import counts", "relaxprune.pruning.channels.x", "relaxprune.pruning.sharing.counts"),
    ],
)
def test_the_check_sees_an_upward_import(source: str, name: str, broken: str) -> None:
    assert _broken_imports(Module(name, Path("x.py"), ast.parse(source))) == [broken]


def test_the_check_sees_a_circle() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
