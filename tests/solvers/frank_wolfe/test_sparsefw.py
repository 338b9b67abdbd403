from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from relaxprune import KSparse, MaskProblem, solve
from relaxprune.problems.saliency import SALIENCIES
from relaxprune.solving.solving import least_memory
from tests.counting import counted
from tests.layers import POLYTOPES, SHAPE, layer
from tests.random_problems import Draw


def published(
    problem: MaskProblem, alpha: float, iterations: int, at_most: bool, start: np.ndarray | None = None
) -> np.ndarray:
    """SparseFW for one count per row, written from the paper's algorithm 2 with numpy, one row at a time."""
    weight, gram = problem.weight.double().numpy(), problem.gram.double().numpy()
    keep = problem.polytope.kept(problem.shape) // problem.shape[0]
    fixed_count = int(alpha * keep + 1e-9)
    result = np.zeros(weight.shape)
    for i, row in enumerate(weight):
        score = np.abs(row) * np.sqrt(np.diag(gram))
        fixed = np.argsort(-score)[:fixed_count]
        mask = np.zeros(len(row))
        mask[np.argsort(-score)[:keep] if start is None else start[i]] = 1
        for t in range(iterations):
            gradient = -2 * row * ((row * (1 - mask)) @ gram)
            gradient[fixed] = -np.inf
            vertex = np.zeros(len(row))
            chosen = np.argsort(gradient)[:keep]
            vertex[chosen] = gradient[chosen] < 0 if at_most else 1
            mask = mask + 2 / (t + 2) * (vertex - mask)
        result[i] = mask
    return result


@pytest.mark.parametrize("at_most", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
def test_it_is_the_published_algorithm(alpha, at_most):
    problem, _ = layer("row")
    solution = solve(problem, "sparsefw", alpha=alpha, at_most=at_most, max_iterations=30, dtype="float64")
    assert solution.relaxed_mask is not None
    expected = torch.from_numpy(published(problem, alpha, 30, at_most))
    assert torch.allclose(solution.relaxed_mask, expected, atol=1e-9)
    assert torch.equal(solution.mask, problem.polytope.round(expected))


def test_the_defaults_are_those_of_the_paper():
    problem, _ = layer("row")
    solution = solve(problem, "sparsefw")
    assert solution.options == {"dtype": "float32", "alpha": 0.9, "saliency": "wanda", "at_most": True}
    assert solution.stats.iterations == 2000 and solution.polish is None


@pytest.mark.parametrize("name", SALIENCIES)
def test_all_fixed_is_the_saliencys_own_mask(name):
    problem, _ = layer("row")
    solution = solve(problem, "sparsefw", alpha=1.0, saliency=name, max_iterations=20)
    assert torch.equal(solution.mask, solve(problem, name).mask)


@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("at_most", [True, False])
def test_the_most_salient_weights_stay_and_the_mask_is_feasible(name, at_most):
    problem, rule = layer(name)
    solution = solve(problem, "sparsefw", alpha=0.5, at_most=at_most, max_iterations=50)
    fixed = problem.polytope.with_share(0.5).round(problem.score("wanda"))
    assert rule.feasible(solution.mask) and bool(solution.mask[fixed].all())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("at_most", [True, False])
def test_entries_that_the_problem_keeps_count_among_the_fixed(alpha, at_most):
    """Kept entries of little salience use up the count: alpha must not fix more than what is left."""
    base, rule = layer("row")
    kept = torch.zeros(SHAPE, dtype=torch.bool)
    kept.scatter_(1, base.score("wanda").argsort(dim=1)[:, :9], True)
    problem = MaskProblem(base.weight, base.gram, KSparse(12), fixed_kept=kept)
    solution = solve(problem, "sparsefw", alpha=alpha, at_most=at_most, max_iterations=50)
    assert rule.fixing(kept, None).feasible(solution.mask)
    assert solution.relaxed_mask is not None
    relaxed = solution.relaxed_mask.double()
    assert bool((relaxed[kept] >= 1 - 1e-4).all()), "an iterate leaves out entries that the problem keeps"
    assert bool((relaxed.sum(dim=1) <= 12 + 1e-3).all())


@pytest.mark.parametrize("name", POLYTOPES)
def test_fixed_entries_of_the_problem_hold(name):
    problem, rule = layer(name, fixed=True)
    for at_most in (True, False):
        solution = solve(problem, "sparsefw", at_most=at_most, max_iterations=50)
        assert rule.feasible(solution.mask)


def test_reported_products_are_the_products_done():
    problem, _ = layer("row")
    for budget in (None, least_memory(problem, "sparsefw")):
        with counted(SHAPE[0]) as products:
            solution = solve(problem, "sparsefw", max_iterations=250, memory_budget_bytes=budget)
        assert solution.stats.products == pytest.approx(products.done)


@pytest.mark.parametrize("iterations", [1, 40])
def test_the_start_acts_through_the_first_gradient_only(iterations):
    problem, _ = layer("row")
    random = problem.polytope.round(Draw(4).uniform(0, 1, *SHAPE))
    options: dict[str, Any] = {"max_iterations": iterations, "dtype": "float64", "alpha": 0.25, "at_most": False}
    there, usual = (solve(problem, "sparsefw", start=start, **options).relaxed_mask for start in (random, "wanda"))
    assert there is not None and usual is not None and not torch.equal(there, usual), "the start has no effect"
    expected = torch.from_numpy(published(problem, 0.25, iterations, False, random.numpy()))
    assert torch.allclose(there, expected, atol=1e-9)
    if iterations > 1:
        return
    # One step leads to the vertex that the gradient at the start asks for, and nothing else of the start is left.
    fixed = problem.polytope.with_share(0.25).round(problem.score("wanda"))
    first = problem.half_gradient(random).masked_fill(fixed, -torch.inf)
    assert torch.equal(there, problem.polytope.lmo(first))
