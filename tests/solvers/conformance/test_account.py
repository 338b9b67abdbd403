"""A complete run without one of the solvers fails, and names it; a selection of checks does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .account import REFERENCE, Account

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
CHECKS = """
from .account import ACCOUNT, REFERENCE

def test_one(name):
    ACCOUNT.ran.add(REFERENCE)
    if name != "swap":
        ACCOUNT.ran.add(name)
    else:
        ACCOUNT.refused[name] = "it is Tuesday"

def test_two(name):
    pass
"""


def test_only_a_complete_run_misses_anything() -> None:
    account = Account(planned={"a", "b"}, started={"a"}, ran={"fw"})
    assert account.missing(["fw", "ils"]) == [], "a check has not begun"
    account.started.add("b")
    assert account.missing(["fw", "ils"]) == ["ils", REFERENCE]
    account.partial = True
    assert account.missing(["fw", "ils"]) == [], "checks were deselected"
    assert Account().missing(["fw"]) == [], "nothing of the suite was collected"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["pack"], 1), (["pack", "-k", "fw"], 0), (["pack/test_checks.py::test_one"], 0)],
)
def test_the_run_fails_only_where_all_was_asked_for(pytester: pytest.Pytester, arguments: list[str], code: int) -> None:
    pack = pytester.mkdir("pack")
    for name in ("__init__.py", "account.py", "conftest.py"):
        shutil.copy(HERE / name, pack / name)
    (pack / "test_checks.py").write_text(CHECKS)
    done = pytester.runpytest_inprocess("--import-mode=importlib", "-p", "no:cacheprovider", "-q", *arguments)
    assert done.ret == code
    failed = "CONFORMANCE FAILED: swap never ran in this session: it is Tuesday" in done.stdout.str()
    assert failed == (code == 1)


def test_processes_of_one_run_are_judged_together() -> None:
    first = Account(planned={"a", "b"}, started={"a"}, ran={"fw"}, refused={"ils": "no"})
    second = Account(planned={"a", "b"}, started={"b"}, ran={"ils", REFERENCE})
    together = Account()
    for account in (first, second):
        together.add(account.to_dict())
    assert together.missing(["fw", "ils", "swap"]) == ["swap"]
