"""A solver of another package, with the very code of docs/add-a-solver.md, is found, listed and held to the checks."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from relaxprune import available_solvers
from relaxprune.cli import main
from relaxprune.solvers import make_solver, solver_class, solver_names
from tests.docs.blocks import ROOT, Block, blocks

from .account import ACCOUNT
from .band_checks import check_reports, check_stop, check_time
from .checks import (
    attempt,
    check_budgets,
    check_failure,
    check_mask,
    check_monotone,
    check_optimum,
    check_permuted,
    check_products,
    check_relaxation,
)
from .problems import KINDS, LAYERS, SETS, layer, tiny

PAGE = ROOT / "docs" / "add-a-solver.md"
GROUP = "relaxprune.solvers"


def _blocks(language: str) -> list[Block]:
    """The page's code blocks of one language that are run."""
    return [block for block in blocks(PAGE) if block.language == language and not block.not_run]


def _entry_points() -> dict[str, str]:
    """The entry points of the page's TOML block: name to "module:Class"."""
    (block,) = (block for block in _blocks("toml") if GROUP in block.text)
    found: dict[str, str] = tomllib.loads(block.text)["project"]["entry-points"][GROUP]
    return found


def _write_package(folder: Path, points: dict[str, str]) -> None:
    """Lay a package and its metadata out as an installer would, without one."""
    (module,) = {target.partition(":")[0] for target in points.values()}
    *parents, leaf = module.split(".")
    home = folder.joinpath(*parents)
    home.mkdir(parents=True)
    (home / "__init__.py").touch()
    (home / f"{leaf}.py").write_text("\n\n".join(block.text for block in _blocks("python")), encoding="utf-8")
    metadata = folder / f"{parents[0]}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {parents[0]}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Put the package of the page on the path; its one-shot solver gets an entry point too."""
    points = _entry_points()
    (module,) = {target.partition(":")[0] for target in points.values()}
    points = {**points, "random": f"{module}:RandomMask"}
    _write_package(tmp_path, points)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield list(points)
    for name in [name for name in sys.modules if name.split(".")[0] == module.split(".")[0]]:
        del sys.modules[name]
    ACCOUNT.ran -= set(points)


def test_it_is_found_and_listed(outside: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    known = solver_names()
    assert known[-len(outside) :] == sorted(outside), "ours come first"
    for name in outside:
        assert solver_class(name).name == name and available_solvers()[name] == solver_class(name).summary
        assert make_solver(name).options() == make_solver(name).options()
    assert main(["solvers"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == known


def test_it_is_gone_with_its_package() -> None:
    assert not set(_entry_points()) & set(solver_names())


@pytest.mark.parametrize("set_name", SETS)
def test_it_conforms_where_the_optimum_is_known(outside: list[str], set_name: str, seed: int) -> None:
    for name in outside:
        for kind in KINDS:
            case = tiny(kind, set_name, seed).case()
            solution = attempt(case, name)
            assert solution is not None and solution.solver == name
            check_mask(case, solution)
            check_optimum(case, solution)


def test_it_conforms_on_layers(outside: list[str], seed: int) -> None:
    for name in outside:
        for set_name in LAYERS:
            check_relaxation(layer("mask", set_name, seed).case(), name, tolerance=1e-2)
        check_products(layer("mask", "layer", seed).case(), name)
        check_budgets(layer("quadratic", "row", seed).case(), name)
        check_failure(layer("mask", "row", seed).case(), name)
        check_monotone(layer("mask", "row", seed).case(), name)
        for check in (check_reports, check_stop, check_time):
            check(layer("mask", "row", seed).case(), name)
    (iterative,) = _entry_points()  # random masks differ from one order of columns to another
    check_permuted(layer("mask", "row", seed, (32, 32)), iterative)
