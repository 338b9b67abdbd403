from __future__ import annotations

import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, Status, solve
from relaxprune.problems import QuadraticProblem
from relaxprune.solvers.reference.engine import exact_backends
from relaxprune.solvers.reference.engine.exact_backends import Proof
from relaxprune.solvers.reference.enumeration import Enumerate
from relaxprune.solvers.reference.exact import Exact, well_conditioned
from tests.layers import correlated_gram
from tests.random_problems import Draw, random_case

COLS = 14
SETS = {
    "row": (KSparse(7), 2),
    "row at most": (KSparse(5, at_most=True), 2),
    "layer": (KSparse(7, "layer"), 2),
    "layer at most": (KSparse(7, "layer", at_most=True), 2),
    "nm": (NM(3, 7), 2),
    "nm at most": (NM(1, 2, at_most=True), 2),
}


def problem_of(name: str, fixed: bool, rank: int | None = None) -> MaskProblem:
    polytope, rows = SETS[name]
    draw = Draw(11)
    cols = COLS // 2 if name.startswith("layer") else COLS
    weight, gram = draw.normal(rows, cols), correlated_gram(cols, draw, rank)
    kept = pruned = None
    if fixed:
        mask = polytope.round(draw.uniform(0, 1, rows, cols))
        kept, pruned = mask & draw.bits(0.3, rows, cols), ~mask & draw.bits(0.3, rows, cols)
    return MaskProblem(weight, gram, polytope, fixed_kept=kept, fixed_pruned=pruned)


@pytest.mark.parametrize("backend", ["scip", "daqp"])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("name", SETS)
def test_agrees_with_enumeration(name, fixed, backend):
    problem = problem_of(name, fixed)
    truth, proven = solve(problem, Enumerate()), solve(problem, Exact(backend))
    assert truth.status is proven.status is Status.OPTIMAL
    assert problem.polytope.contains(proven.mask)
    assert proven.block_objective.tolist() == pytest.approx(truth.block_objective.tolist(), rel=1e-9)


@pytest.mark.parametrize("backend", ["scip", "daqp"])
def test_rank_deficient_grams(backend):
    problem = problem_of("row", False, rank=5)
    truth, proven = solve(problem, Enumerate()), solve(problem, Exact(backend))
    assert proven.objective == pytest.approx(truth.objective, rel=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31))
def test_never_claims_what_enumeration_beats(seed):
    case = random_case(seed)
    truth = solve(case.problem, Enumerate())
    proven = solve(case.problem, Exact("daqp"))
    assert case.rule.feasible(proven.mask), case.label
    if proven.status is Status.OPTIMAL:
        noise = 1e-9 * float(case.problem.diagonal.sum()) * case.problem.shape[1]
        assert proven.objective <= truth.objective * (1 + 2e-6) + noise, case.label


@pytest.mark.parametrize("backend", ["scip", "daqp"])
def test_any_quadratic(backend):
    draw = Draw(5)
    factor = draw.normal(20, 10)
    problem = QuadraticProblem(factor.T @ factor / 20, draw.normal(3, 10), KSparse(4))
    truth = solve(problem, Enumerate(), start=None)
    proven = solve(problem, Exact(backend), start=None)
    assert proven.status is Status.OPTIMAL
    assert proven.objective == pytest.approx(truth.objective, rel=1e-9)


@given(seed=st.integers(0, 2**31))
def test_the_tightened_form_is_convex_and_equal_on_masks(seed):
    draw = Draw(seed)
    inputs = draw.normal(draw.whole(2, 30), 12) * 10 ** draw.uniform(-3, 3, 12)
    quadratic = (inputs.T @ inputs).numpy()
    diagonal = well_conditioned(quadratic)
    rest = quadratic - np.diag(diagonal)
    root = np.diagonal(quadratic) ** 0.5
    assert np.linalg.eigvalsh(rest / root / root[:, None])[0] > 0
    z = draw.bits(0.5, 12).to(torch.float64).numpy()
    assert z @ rest @ z + diagonal @ z == pytest.approx(z @ quadratic @ z, rel=1e-9, abs=1e-9 * np.trace(quadratic))


def test_the_tightened_form_of_a_diagonal_leaves_only_the_linear_term():
    quadratic = np.diag([1.0, 4.0, 0.0, 9.0])
    assert well_conditioned(quadratic) == pytest.approx(np.diagonal(quadratic), rel=1e-2)


def large_problem(rows: int = 2, cols: int = 60) -> MaskProblem:
    draw = Draw(2)
    factor = draw.normal(12, cols)
    return MaskProblem(draw.normal(rows, cols), factor.T @ factor, KSparse(cols // 2))


@pytest.mark.parametrize("backend", ["scip", "daqp"])
def test_out_of_time_keeps_the_best_mask_found(backend):
    problem = large_problem()
    started = time.monotonic()
    solution = solve(problem, Exact(backend), time_limit_s=1.0)
    assert time.monotonic() - started < 5
    assert solution.status is Status.TIME_LIMIT
    assert problem.polytope.contains(solution.mask)
    assert solution.objective <= solve(problem, "wanda").objective


def test_node_limit_and_daqps_lack_of_one():
    problem = problem_of("row", False)
    with pytest.raises(RelaxPruneError, match="max_iterations is 3, which solver 'exact' does not use"):
        solve(problem, Exact("daqp"), max_iterations=3)
    assert solve(large_problem(1, 40), Exact(), max_iterations=1).status is Status.ITERATION_LIMIT


def test_an_unproven_or_wrong_answer_is_never_called_optimal(monkeypatch):
    """A backend that claims the opposite of the truth must not be believed."""
    problem = problem_of("row", False)

    def lying(program, diagonal, incumbent, limits):
        return Proof(incumbent, program.value(incumbent) * 0.99, Status.OPTIMAL, 1)

    monkeypatch.setitem(sys.modules["relaxprune.solvers.reference.exact"]._BACKENDS, "scip", lying)
    assert solve(problem, Exact()).status is Status.CONVERGED


def test_flag_four_of_daqp_is_no_proof(monkeypatch):
    import daqp

    problem = problem_of("row", False)
    true_solve = daqp.solve

    def inexact(*args, **kwargs):
        point, value, _, info = true_solve(*args, **kwargs)
        return point, value, 4, info

    monkeypatch.setattr(daqp, "solve", inexact)
    assert solve(problem, Exact("daqp")).status is Status.CONVERGED


def test_too_large_is_refused_with_the_limit_and_what_fits():
    problem = MaskProblem(torch.ones(1, 100), torch.eye(100), KSparse(50))
    with pytest.raises(RelaxPruneError, match="at most 64 free entries per coupled block, and this problem has 100"):
        Exact().check(problem)
    kept = torch.zeros(1, 100, dtype=torch.bool)
    kept[0, :40] = True
    Exact().check(MaskProblem(torch.ones(1, 100), torch.eye(100), KSparse(50), fixed_kept=kept))


def test_a_missing_backend_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyscipopt", None)
    with pytest.raises(RelaxPruneError, match=r"pip install 'relaxprune\[exact\]'"):
        Exact().check(problem_of("row", False))


def test_options_are_checked():
    with pytest.raises(RelaxPruneError, match="backend must be"):
        Exact("gurobi")
    assert Exact().options() == {"backend": "scip"}
    assert exact_backends.Limits(None, None, 0).seconds is None
