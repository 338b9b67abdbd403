"""Every solver on problems whose weights move: what it returns, judged by arithmetic of its own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relaxprune import NM, Hybrid, KSparse, ReconstructionProblem, solve
from relaxprune.certificates import certify_weights
from relaxprune.problems import RelaxPruneError
from relaxprune.problems.polytopes.transposable import TransposableNM
from relaxprune.solvers import solver_class
from relaxprune.solving.solution import Solution
from tests.conftest import LONG
from tests.layers import correlated_gram
from tests.random_problems import GRAMS, Draw, make_gram

from .checks import MOST_ITERATIONS, check_refusal, default_iterations

SETS = (KSparse(3), KSparse(3, at_most=True), KSparse(8, per="layer"), NM(2, 4), TransposableNM(2, 4), Hybrid(2, 4, 1))
DRAWN = settings(max_examples=60 if LONG else 1, deadline=None, suppress_health_check=list(HealthCheck))


def attempt(problem: ReconstructionProblem, name: str) -> Solution | None:
    """Solve a problem, None where the solver says that it cannot take it."""
    solver = solver_class(name)()
    long = default_iterations(solver) > MOST_ITERATIONS
    try:
        return solve(problem, solver, throw=False, max_iterations=MOST_ITERATIONS if long else None)
    except RelaxPruneError as refusal:
        check_refusal(name, str(refusal))
        return None


def check_answer(problem: ReconstructionProblem, solution: Solution) -> None:
    """Feasible, 0 outside of the mask, judged right, and bounded by what is proven."""
    mask, weight = solution.mask, solution.weight
    assert mask.dtype == torch.bool and problem.polytope.contains(mask)
    assert weight.dtype == problem.weight.dtype and bool(torch.isfinite(weight).all())
    outside = weight[~mask]
    assert bool((outside == 0).all()) and not bool(torch.signbit(outside).any())
    objective = value(problem, weight)
    scale = 1e-9 * max(problem.reference, 1e-300)
    assert math.isclose(solution.objective, objective, rel_tol=1e-6, abs_tol=scale)
    assert solution.lower_bound <= objective * (1 + 1e-9) + scale
    solution.certificate.verify(problem)


def value(problem: ReconstructionProblem, weight: torch.Tensor) -> float:
    """Return f in NumPy's extended precision."""
    lost = problem.weight.double().numpy().astype(np.longdouble) - weight.double().numpy()
    gram = problem.prepared.matrix.double().numpy().astype(np.longdouble)
    return float(((lost @ gram) * lost).sum())


def least(problem: ReconstructionProblem, supports: list[list[int]]) -> list[float]:
    """Return each row's least error over some supports, weights from numpy's pseudo-inverse."""
    gram = problem.prepared.matrix.double().numpy()
    found = []
    for row in problem.weight.double().numpy():
        errors = []
        for kept in supports:
            lost = row.copy()
            if kept:
                lost[kept] -= np.linalg.pinv(gram[np.ix_(kept, kept)], hermitian=True) @ (gram[kept] @ row)
            errors.append(float(lost @ gram @ lost))
        found.append(min(errors))
    return found


@pytest.mark.parametrize(
    ("polytope", "dtype"),
    [
        (kind, (torch.float32, torch.float64)[n])
        for i, kind in enumerate(SETS)
        for n in (0, 1)
        if LONG or (i % 2 == n and i != 1)
    ],
    ids=repr,
)
def test_a_correlated_layer(name: str, polytope, dtype: torch.dtype, seed: int) -> None:
    draw = Draw(seed)
    weight, gram = draw.normal(4, 8).to(dtype), correlated_gram(8, draw).to(dtype)
    problem = ReconstructionProblem(weight, gram, polytope, damping=1e-3)
    solution = attempt(problem, name)
    if solution is not None:
        check_answer(problem, solution)
        again = attempt(problem, name)
        assert torch.equal(again.weight, solution.weight) and torch.equal(again.mask, solution.mask)


@DRAWN
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(GRAMS))
def test_a_drawn_layer(name: str, seed: int, kind: str) -> None:
    draw = Draw(seed)
    weight, gram = draw.normal(2, 8) * 10 ** draw.uniform(-3, 3), make_gram(kind, 8, draw)
    try:
        problem = ReconstructionProblem(weight, gram, draw.pick(SETS[:2]), damping=draw.pick((1e-6, 1e-2)))
    except RelaxPruneError:
        return  # more negative than damping allows for
    solution = attempt(problem, name)
    if solution is not None:
        check_answer(problem, solution)


@pytest.mark.parametrize("polytope", [*SETS[:2], NM(2, 4)], ids=repr)
def test_the_exact_certificate(polytope, seed: int) -> None:
    """Between the relaxation's bound and every answer, and at the optimum."""
    draw = Draw(seed)
    problem = ReconstructionProblem(draw.normal(3, 8), correlated_gram(8, draw), polytope, damping=1e-3)
    solution = solve(problem, polish=None if polytope.is_at_most() else "obs-swap")
    exact = certify_weights(problem, solution.weight, "exact")
    exact.verify(problem)
    if isinstance(polytope, NM):
        halves = itertools.product(itertools.combinations(range(4), 2), itertools.combinations(range(4, 8), 2))
        supports = [[*one, *other] for one, other in halves]
    else:
        sizes = range(4) if polytope.is_at_most() else [3]
        supports = [list(kept) for size in sizes for kept in itertools.combinations(range(8), size)]
    for low, best, bound, found in zip(
        exact.block_lower_bound.tolist(),
        least(problem, supports),
        solution.certificate.block_lower_bound.tolist(),
        solution.block_objective.tolist(),
        strict=True,
    ):
        assert bound * (1 - 1e-9) <= low <= best <= found * (1 + 1e-9)
        assert low == pytest.approx(best, rel=1e-6)
    assert solution.objective <= 1.5 * exact.lower_bound


@DRAWN
@given(seed=st.integers(0, 2**31))
@pytest.mark.parametrize("kind", GRAMS)
def test_no_exact_bound_exceeds_the_optimum(kind: str, seed: int) -> None:
    draw = Draw(seed)
    weight, gram = draw.normal(2, 6) * 10 ** draw.uniform(-3, 3), make_gram(kind, 6, draw)
    keep = draw.whole(0, 6)
    supports = [list(kept) for kept in itertools.combinations(range(6), keep)]
    try:
        problem = ReconstructionProblem(weight, gram, KSparse(keep), damping=draw.pick((1e-6, 1e-2)))
        exact = certify_weights(problem, torch.zeros(problem.shape), "exact")
    except RelaxPruneError as refusal:
        assert "damping" in str(refusal)
        return
    noise = 1e-9 * problem.mask_problem.dense_energy
    for low, best in zip(exact.block_lower_bound.tolist(), least(problem, supports), strict=True):
        assert low <= best + noise


def test_what_exact_cannot_do_is_refused() -> None:
    draw = Draw(0)
    weight, gram = draw.normal(2, 40), correlated_gram(40, draw)
    problem = ReconstructionProblem(weight, gram, KSparse(20), damping=1e-3)
    with pytest.raises(RelaxPruneError, match=r"up to 2\^20"):
        certify_weights(problem, torch.zeros(problem.shape), "exact")
    with pytest.raises(RelaxPruneError, match="did you mean 'exact'"):
        certify_weights(problem, weight, "exct")
