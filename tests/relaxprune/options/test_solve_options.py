"""What one may ask of a solve: one value, with the same checks wherever it is embedded."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from relaxprune import (
    KSparse,
    MaskProblem,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
    SolveError,
    SolveOptions,
    solve,
)
from relaxprune.adapters.one_weight import choice
from relaxprune.cli.compare import CompareGroup
from relaxprune.cli.option_groups import SolverGroup
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.solve_options import solver_of
from relaxprune.problems import BaseProblem
from relaxprune.solvers import make_solver
from relaxprune.solving.comparison import ComparisonOptions, compare


def small() -> MaskProblem:
    draw = torch.Generator().manual_seed(5)
    inputs = torch.randn(60, 12, generator=draw) @ torch.randn(12, 12, generator=draw)
    return MaskProblem(torch.randn(4, 12, generator=draw), inputs.T @ inputs / 60, KSparse(6))


WRONG = [
    ({"start": "wandaa"}, "start must be one of auto, .*did you mean 'wanda'"),
    ({"start": 3}, "start must be one of"),
    ({"polish": "swapp"}, "polish must be one of auto, swap, obs-swap or None, got 'swapp'; did you mean 'swap'"),
    ({"max_iterations": 2.5}, "max_iterations must be a whole number of at least 1, got 2.5"),
    ({"max_iterations": True}, "max_iterations must be a whole number"),
    ({"time_limit_s": 0}, "time_limit_s must be a positive number, got 0"),
    ({"gap_tolerance": float("inf")}, "gap_tolerance must be a positive number"),
    ({"seed": -1}, "seed must be a whole number of at least 0"),
    ({"seed": 2**32 - 1}, "seed must be at most 4294967294"),
    ({"memory_budget_bytes": -5}, "memory_budget_bytes must be a positive number"),
]


@pytest.mark.parametrize("kind", [SolveOptions, PruneOptions, ComparisonOptions])
@pytest.mark.parametrize(("words", "expected"), WRONG)
def test_whoever_embeds_them_refuses_the_same(kind: type[SolveOptions], words: dict, expected: str) -> None:
    with pytest.raises(RelaxPruneError, match=expected):
        kind(**words)


@pytest.mark.parametrize(("words", "expected"), WRONG)
def test_so_do_all_who_take_them_by_name(words: dict, expected: str) -> None:
    for ask in (
        lambda: solve(small(), **words),
        lambda: compare(small(), **words),
        lambda: choice(0.5, None, "fw", words),
    ):
        with pytest.raises(RelaxPruneError, match=expected):
            ask()


def test_words_count_for_more_than_options() -> None:
    options = SolveOptions(seed=3, max_iterations=4)
    asked, own = options.updated({"max_iterations": 9, "effort": "fast"})
    assert (asked.seed, asked.max_iterations, own) == (3, 9, {"effort": "fast"}) and options.max_iterations == 4
    problem = small()
    one = solve(problem, options=SolveOptions(max_iterations=7, polish=None), effort="fast")
    assert torch.equal(one.mask, solve(problem, max_iterations=7, polish=None, effort="fast").mask)
    assert one.stats.iterations == solve(problem, options=options, max_iterations=7, polish=None).stats.iterations


def test_options_of_another_kind_are_refused() -> None:
    wrong: Any = {"seed": 3}
    other: Any = SolveOptions()
    with pytest.raises(RelaxPruneError, match="options must be SolveOptions, got dict"):
        solve(small(), options=wrong)
    with pytest.raises(RelaxPruneError, match="options must be ComparisonOptions, got SolveOptions"):
        compare(small(), options=other)


def test_a_misspelt_word_is_looked_for_among_both() -> None:
    with pytest.raises(RelaxPruneError, match=r"'max_iteration' is neither .* did you mean 'max_iterations'"):
        solver_of("fw", {"max_iteration": 3})
    with pytest.raises(RelaxPruneError, match="no option 'efort'; did you mean 'effort'"):
        solver_of("fw", {"efort": "fast"})
    with pytest.raises(RelaxPruneError, match="did you mean 'seed'"):
        solver_of(make_solver("fw"), {"sed": 3})
    with pytest.raises(RelaxPruneError, match=r"not an argument of compare.*did you mean 'curves'"):
        compare(small(), ["fw"], curve=True)


def test_what_is_given_is_what_differs_from_the_defaults() -> None:
    assert SolveOptions().given() == [] and SolveOptions(seed=4, polish=None).given() == []
    assert SolveOptions(start=None, time_limit_s=1.0).given() == ["start", "time_limit_s"]
    assert SolveOptions(start=torch.ones(2, 6, dtype=torch.bool)).given() == ["start"]


def test_the_command_line_asks_for_the_same() -> None:
    asked = SolverGroup(start="none", polish="none", max_iterations=3, time_limit_s=2.0).options(seed=7)
    assert asked == SolveOptions(start=None, polish=None, max_iterations=3, time_limit_s=2.0, seed=7)
    assert SolverGroup().options(0) == CompareGroup().options(0) == SolveOptions()


def test_a_model_has_no_mask_to_start_from() -> None:
    with pytest.raises(RelaxPruneError, match="ria or None, got 'a mask'"):
        PruneOptions(start=torch.ones(2, 2, dtype=torch.bool))
    with pytest.raises(
        RelaxPruneError, match="start must be one of auto, magnitude, wanda, ria or None, got 'savings'"
    ):
        PruneOptions(start="savings")
    assert {item.name for item in fields(SolveOptions)} < {item.name for item in fields(PruneOptions)}


def test_a_saliency_that_a_problem_does_not_have_is_refused() -> None:
    draw = torch.Generator().manual_seed(5)
    factor, linear = torch.randn(20, 8, generator=draw), torch.randn(2, 8, generator=draw)
    problem = QuadraticProblem(factor.T @ factor / 20, linear, KSparse(3))
    default = solve(problem)
    assert default.relative_error is None and problem.reference is None and problem.relative_error(default.mask) is None
    assert "relative_error" not in repr(default) and "relative error" not in default._repr_html_()
    assert torch.equal(solve(problem, start="savings").mask, default.mask)
    for solver in ("wanda", "ria", "magnitude", "sparsefw"):
        with pytest.raises(RelaxPruneError, match=r"needs the saliency .* a QuadraticProblem .* savings\); use fw"):
            solve(problem, solver)
    with pytest.raises(RelaxPruneError, match="start needs the saliency 'wanda'"):
        solve(problem, start="wanda")
    with pytest.raises(
        RelaxPruneError, match=r"start needs the saliency 'savings'.*\(it has magnitude, wanda, ria\); leave it"
    ):
        solve(small(), start="savings")


def test_every_problem_says_what_a_solver_sees_and_whether_weights_move() -> None:
    kept = small()
    moved = ReconstructionProblem(kept.weight, kept.prepared, kept.polytope)
    assert kept.mask_problem is kept and not kept.moves_weights
    assert moved.moves_weights and torch.equal(moved.mask_problem.weight, kept.weight)
    assert all(isinstance(problem, BaseProblem) for problem in (kept, moved))
    with pytest.raises(RelaxPruneError, match='polish "obs-swap" is for weights that move'):
        solve(kept, polish="obs-swap")
    with pytest.raises(RelaxPruneError, match="problem must be a Problem such as MaskProblem, got str"):
        solve("a problem")


def test_a_failed_solve_is_an_error_of_both_kinds() -> None:
    assert issubclass(SolveError, RelaxPruneError) and issubclass(SolveError, FloatingPointError)
