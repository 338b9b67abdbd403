"""relaxprune compare: one table of several solvers, in which failures are rows; its JSON and its plot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from relaxprune import KSparse, MaskProblem, RelaxPruneError
from relaxprune.cli import main
from relaxprune.problems import Problem
from relaxprune.solvers import Answer, Run, Solver, registry, solver_names
from relaxprune.solving import comparison_plot
from relaxprune.solving.comparison import Comparison, ComparisonOptions, compare

matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="the plot needs matplotlib: pip install 'relaxprune[report]'"
)


class Broken(Solver):
    """Breaks on every problem."""

    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "breaks"

    def run(self, problem: Problem, run: Run) -> Answer:
        raise ZeroDivisionError("by design")


class Picky(Broken):
    """Takes no problem."""

    name: ClassVar[str] = "picky"

    def check(self, problem: Problem) -> None:
        raise RelaxPruneError("solver 'picky' takes nothing; 'fw' fits")


@pytest.fixture
def two_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two solvers that give no answer, in the registry."""
    monkeypatch.setitem(registry._BUILT_IN, "broken", f"{__name__}:Broken")
    monkeypatch.setitem(registry._BUILT_IN, "picky", f"{__name__}:Picky")
    real = registry.import_module
    here = type("Here", (), {"Broken": Broken, "Picky": Picky})
    monkeypatch.setattr(registry, "import_module", lambda name: here if name == __name__ else real(name))


@pytest.fixture
def problem(generator: torch.Generator) -> MaskProblem:
    inputs = torch.randn(64, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    return MaskProblem(torch.randn(6, 16, generator=generator), inputs.T @ inputs / 64, KSparse(8))


@pytest.fixture
def problem_file(problem: MaskProblem, tmp_path: Path) -> Path:
    path = tmp_path / "layer.safetensors"
    save_file({"weight": problem.weight, "gram": problem.gram}, path)
    return path


def _reached(comparison: Comparison, name: str) -> Any:
    """The last point of a solver."""
    (row,) = (row for row in comparison.rows if row.solver == name)
    return row.result


def test_rows_are_ordered_by_objective_and_failures_stay(problem: MaskProblem, two_more: None) -> None:
    seen: list[str] = []
    names = ["wanda", "broken", "fw", "picky", "swap"]
    comparison = compare(problem, names, on_row=lambda row: seen.append(row.solver))
    assert seen == names
    assert [row.solver for row in comparison.rows][2:] == ["wanda", "broken", "picky"]
    broken, picky = comparison.rows[3:]
    assert (broken.status, broken.failed, broken.result) == ("ERROR", True, None)
    assert broken.message == "ZeroDivisionError: by design"
    assert (picky.status, picky.failed) == ("REFUSED", False)
    text = str(comparison)
    assert "picky: solver 'picky' takes nothing; 'fw' fits" in text and "best objective" in text
    assert text.splitlines()[0].split() == [
        "solver", "objective", "relaxed", "bound", "gap", "status", "seconds", "products"
    ]  # fmt: skip
    assert comparison.best_objective == min(_reached(comparison, name).objective for name in ("fw", "swap", "wanda"))
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_a_curve_is_made_of_whole_solves(problem: MaskProblem) -> None:
    from relaxprune import solve

    comparison = compare(problem, ["fw", "wanda"], options=ComparisonOptions(max_iterations=40, curves=True))
    by_name = {row.solver: row for row in comparison.rows}
    curve = by_name["fw"].curve
    assert curve[-1] == by_name["fw"].result and len(curve) > 3 and len(by_name["wanda"].curve) == 1
    for point in curve:
        alone = solve(problem, "fw", max_iterations=point.iterations)
        assert (point.objective, point.lower_bound) == (alone.objective, alone.lower_bound)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["fww"], "did you mean 'fw'"),
        ([], "at least one solver"),
        (["fw", "fw"], "each once, got fw, fw"),
    ],
)
def test_wrong_names_are_refused_before_any_work(problem: MaskProblem, names: list[str], words: str) -> None:
    with pytest.raises(RelaxPruneError, match=words):
        compare(problem, names, on_row=lambda row: pytest.fail("work was done"))


@matplotlib
def test_the_command_writes_table_json_and_plot(
    problem_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "compared"
    words = ["compare", str(problem_file), "--pattern", "2:4", "--solvers", "fw,swap,wanda", "--max-iterations", "30"]
    assert main([*words, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("fw", "swap", "wanda", "products", "written to"))
    facts = json.loads((out / "comparison.json").read_text())
    assert facts["schema_version"] == 1 and facts["problem"]["polytope"]["kind"] == "nm"
    assert {row["solver"] for row in facts["rows"]} == {"fw", "swap", "wanda"}
    assert facts["best_lower_bound"] <= facts["best_objective"]
    assert (out / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--out", str(out)]) == 2
    assert "compared' is not empty" in capsys.readouterr().err


def test_all_is_the_registry(problem_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(problem_file), "--sparsity", "0.5", "--max-iterations", "5", "--time-limit", "5"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1 : len(solver_names()) + 1]]
    assert sorted(listed) == sorted(solver_names())


@pytest.mark.parametrize(("solvers", "code"), [("all", 0), ("fw,picky", 3), ("fw,broken", 3)])
def test_exit_codes(
    problem_file: Path,
    two_more: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    solvers: str,
    code: int,
) -> None:
    kept = ("fw", "picky") if solvers == "all" else tuple(solvers.split(","))
    monkeypatch.setattr(registry, "_BUILT_IN", {name: registry._BUILT_IN[name] for name in {*kept, "swap"}})
    assert main(["compare", str(problem_file), "--sparsity", "0.5", "--solvers", solvers]) == code
    assert ("ended as" in capsys.readouterr().err) == (code == 3)


def test_a_missing_matplotlib_is_told_before_any_work(
    problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(comparison_plot, "find_spec", lambda name: None)
    words = ["compare", str(problem_file), "--sparsity", "0.5", "--solvers", "wanda", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    caught = capsys.readouterr()
    assert "pip install 'relaxprune[report]'" in caught.err and caught.out == ""
    assert not (tmp_path / "out").exists()
    assert main([*words, "--no-plot"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["comparison.json"]


@matplotlib
def test_nothing_to_plot(problem: MaskProblem, two_more: None) -> None:
    with pytest.raises(RelaxPruneError, match="no solver of the comparison gave an answer"):
        comparison_plot.plot_comparison(compare(problem, ["picky"]))
