from __future__ import annotations

import sys

import pytest
import torch

from relaxprune import KSparse, MaskProblem, RelaxPruneError, Status, solve
from relaxprune.problems import QuadraticProblem
from relaxprune.solvers.reference.relaxation import Relaxation, _status
from tests.layers import POLYTOPES, layer
from tests.random_problems import Draw


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", POLYTOPES)
def test_the_relaxed_optimum_closes_its_own_gap(name, fixed):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(problem, Relaxation())
    assert solution.status is Status.CONVERGED
    assert rule.feasible(solution.mask)
    assert problem.polytope.contains(solution.relaxed_mask, 1e-6)
    gap = solution.relaxed_objective - solution.lower_bound
    assert abs(gap) <= 1e-6 * solution.relaxed_objective
    descent = solve(problem, "fw", anneal=False, max_iterations=500, dtype="float64")
    assert descent.relaxed_objective >= solution.lower_bound * (1 - 1e-6)
    assert descent.lower_bound <= solution.relaxed_objective * (1 + 1e-6)


def test_rank_deficient_badly_scaled_and_slightly_negative_grams():
    draw = Draw(7)
    inputs = draw.normal(10, 30) * 10 ** torch.linspace(-3, 3, 30, dtype=torch.float64)
    gram = inputs.T @ inputs
    noisy = gram - 1e-5 * torch.diag(gram.diagonal())
    for matrix, allowed in ((gram, 1e-4), (noisy, 1e-1)):
        problem = MaskProblem(draw.normal(3, 30), matrix, KSparse(15))
        solution = solve(problem, Relaxation())
        assert not solution.status.failed
        if solution.status is Status.CONVERGED:
            gap = problem.gradient(solution.relaxed_mask)
            least = (gap * (solution.relaxed_mask - problem.polytope.lmo(gap))).sum()
            assert float(least) <= allowed * solution.relaxed_objective


def test_any_quadratic():
    draw = Draw(5)
    factor = draw.normal(20, 10)
    problem = QuadraticProblem(factor.T @ factor / 20, draw.normal(3, 10), KSparse(4))
    solution = solve(problem, Relaxation(), start=None)
    assert solution.status is Status.CONVERGED
    assert solution.relaxed_objective == pytest.approx(solution.lower_bound, abs=1e-6)


def test_a_backend_that_falls_short_is_not_called_converged():
    draw = Draw(7)
    inputs = draw.normal(10, 30) * 10 ** torch.linspace(-2, 2, 30, dtype=torch.float64)
    problem = MaskProblem(draw.normal(2, 30), inputs.T @ inputs, KSparse(15))
    assert solve(problem, Relaxation("SCS")).status is Status.ITERATION_LIMIT


def test_budgets():
    problem, rule = layer("row")
    few = solve(problem, Relaxation(), max_iterations=2)
    assert few.status is Status.ITERATION_LIMIT and few.stats.iterations <= 2
    late = solve(problem, Relaxation(), time_limit_s=1e-9)
    assert late.status is Status.TIME_LIMIT and rule.feasible(late.mask)
    with pytest.raises(RelaxPruneError, match="max_iterations is 2, which solver 'cvxpy' does not use"):
        solve(problem, Relaxation("HIGHS"), max_iterations=2)


def test_every_status_word_is_mapped():
    import cvxpy.settings as words

    for word in (*words.SOLUTION_PRESENT, *words.INF_OR_UNB, *words.ERROR):
        expected = {
            "optimal": Status.CONVERGED,
            "optimal_inaccurate": Status.CONVERGED,
            "user_limit": Status.ITERATION_LIMIT,
        }
        assert _status(word, False) is expected.get(word, Status.BACKEND_FAILED), word
    assert _status("user_limit", True) is Status.TIME_LIMIT


def test_a_breakdown_is_a_status_not_an_exception(monkeypatch):
    import cvxpy

    def broken(self, **settings):
        raise cvxpy.SolverError("no")

    monkeypatch.setattr(cvxpy.Problem, "solve", broken)
    problem, rule = layer("row")
    solution = solve(problem, Relaxation(), throw=False)
    assert solution.status is Status.BACKEND_FAILED and rule.feasible(solution.mask)


def test_refusals(monkeypatch):
    problem, _ = layer("row")
    with pytest.raises(RelaxPruneError, match="backend must be one of"):
        Relaxation("ECOS_BB")
    with pytest.raises(RelaxPruneError, match="at most 2048 free entries"):
        Relaxation().check(MaskProblem(torch.ones(1, 2049), torch.eye(2049), KSparse(5)))
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(RelaxPruneError, match=r"pip install 'relaxprune\[exact\]'"):
        Relaxation().check(problem)
