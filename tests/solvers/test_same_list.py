"""A solver is one file, one registry line and one docs line: the three, and the suite, hold the same names."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest

import relaxprune.solvers
from relaxprune.solvers import Solver, registry, solver_names
from tests.docs.blocks import ROOT

ROW = re.compile(r"^\| `(?P<name>[\w-]+)` \| (?P<what>\S.*) \|$", re.MULTILINE)


def _documented() -> list[str]:
    """The names in the table of docs/add-a-solver.md."""
    page = (ROOT / "docs" / "add-a-solver.md").read_text(encoding="utf-8")
    return [row["name"] for row in ROW.finditer(page)]


def _written() -> dict[str, str]:
    """The name of every concrete solver class in the package, and where it is."""
    found = {}
    for entry in pkgutil.walk_packages(relaxprune.solvers.__path__, "relaxprune.solvers."):
        module = importlib.import_module(entry.name)
        for value in vars(module).values():
            mine = isinstance(value, type) and value.__module__ == module.__name__
            if mine and issubclass(value, Solver) and not inspect.isabstract(value) and hasattr(value, "name"):
                found[value.name] = f"{module.__name__}:{value.__name__}"
    return found


def test_every_solver_that_is_written_is_registered() -> None:
    assert _written() == registry._BUILT_IN


def test_every_registered_solver_is_documented_once() -> None:
    assert sorted(_documented()) == sorted(registry._BUILT_IN)


class _Collected:
    """A plugin that keeps what a run of pytest collected."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.names = [item.callspec.params["name"] for item in session.items]


def test_the_conformance_suite_takes_every_registered_solver() -> None:
    # One test by its name: with ``-k`` the suite would take this session for a selection.
    check = ROOT / "tests" / "solvers" / "conformance" / "test_conformance.py"
    collected = _Collected()
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", f"{check}::test_a_drawn_problem"]
    assert pytest.main(words, plugins=[collected]) == pytest.ExitCode.OK
    assert collected.names == solver_names()
