"""Runs every conformance check on every solver that the registry knows, and fails a run that left one out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relaxprune.solvers import solver_names

from .account import ACCOUNT

HERE = Path(__file__).parent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test that takes ``name`` every registered solver, those of other packages included."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", solver_names())
        ACCOUNT.planned.add(_function(metafunc.definition))


@pytest.fixture(autouse=True)
def _accounted(request: pytest.FixtureRequest) -> None:
    """Remember which checks began."""
    ACCOUNT.started.add(_function(request.node))


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """A selection of checks says nothing about the solvers that it leaves out."""
    if any(HERE in item.path.parents for item in items):
        ACCOUNT.partial = True


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a complete run in which a solver gave no answer."""
    if session.shouldstop or session.shouldfail:
        ACCOUNT.partial = True
    if hasattr(session.config, "workeroutput"):  # one of several processes: they are judged together
        session.config.workeroutput["account"] = ACCOUNT.to_dict()
        return
    if _missing() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what another process of this run did; one that crashed leaves the account partial."""
    account = getattr(node, "workeroutput", {}).get("account")
    if account is None:
        ACCOUNT.partial = True
    else:
        ACCOUNT.add(account)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the solvers that never ran, and why."""
    for name in _missing():
        reason = ACCOUNT.refused.get(name, "no check reached it")
        terminalreporter.write_line(f"CONFORMANCE FAILED: {name} never ran in this session: {reason}", red=True)


def _missing() -> list[str]:
    """Return who should have run and did not."""
    return ACCOUNT.missing(solver_names()) if ACCOUNT.complete() else []


def _function(item: pytest.Item) -> str:
    """Return a test function's file and name, without its parameters."""
    return f"{item.path}::{getattr(item, 'originalname', item.name)}"
