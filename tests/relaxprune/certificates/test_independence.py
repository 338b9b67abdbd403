"""The checker has no part in the making: nothing in ``certificates/verify`` imports what makes certificates."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.repository import Module, library

CHECKER = "relaxprune.certificates.verify"
ALLOWED = (CHECKER, "relaxprune.problems", "relaxprune.support")
MAKING = ("relaxprune.solvers", "relaxprune.solving", "relaxprune.certificates.")


def of_the_making(module: Module) -> list[str]:
    """The imports of a module of the checker that are neither its own nor the problem's."""
    own = [name for name in module.imports() if name.partition(".")[0] == "relaxprune"]
    return [name for name in own if not any(f"{name}.".startswith(f"{room}.") for room in ALLOWED)]


def test_no_file_of_the_checker_imports_the_making():
    checker = [module for module in library() if f"{module.name}.".startswith(f"{CHECKER}.")]
    assert len(checker) > 10
    assert {module.name: found for module in checker if (found := of_the_making(module))} == {}


@pytest.mark.parametrize(
    "line",
    [
        "from ..underestimator import tangent_bound",
        "from relaxprune.certificates import certify",
        "from .. import perspective",
        "import relaxprune.solvers.base",
        "from relaxprune import solve",
    ],
)
def test_an_import_of_the_making_is_seen(line):
    assert of_the_making(Module(f"{CHECKER}.x", Path("x.py"), ast.parse(f"def late():\n    {line}")))


def test_loading_the_checker_loads_nothing_of_the_making():
    code = f"import sys, {CHECKER}; print(*(name for name in sys.modules if name.startswith('relaxprune')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert CHECKER in loaded
    assert [name for name in sorted(loaded) if name.startswith(MAKING) and not name.startswith(CHECKER)] == []
