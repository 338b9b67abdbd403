from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, Status, solve
from relaxprune.problems import QuadraticProblem
from relaxprune.problems.polytopes.transposable import TransposableNM
from relaxprune.problems.polytopes.vertices import VERTEX_LIMIT, block_vertices
from relaxprune.solvers.reference import enumeration
from relaxprune.solvers.reference.engine.vertex_count import Block
from relaxprune.solvers.reference.enumeration import Enumerate
from tests.enumeration import best_values, magnitude
from tests.random_problems import Draw, random_case

from ..conformance.problems import COUNTED, tiny


@given(seed=st.integers(0, 2**31))
def test_agrees_with_brute_force_written_without_the_package(seed):
    case = random_case(seed)
    solution = solve(case.problem, Enumerate())
    assert solution.status is Status.OPTIMAL, case.label
    assert case.rule.feasible(solution.mask), case.label
    best = best_values(case.problem.weight, case.problem.gram, case.rule)
    excess = solution.block_objective.numpy() - best
    assert (excess <= 1e-9 * np.abs(best) + 1e-13 * magnitude(case.problem.weight, case.problem.gram)).all(), case.label


def test_memory_budgets_only_change_the_chunks():
    draw = Draw(3)
    inputs = draw.normal(40, 10)
    problem = MaskProblem(draw.normal(9, 10), inputs.T @ inputs, KSparse(5))
    whole = solve(problem, Enumerate())
    small = solve(problem, Enumerate(), memory_budget_bytes=20_000)
    assert torch.equal(whole.mask, small.mask)
    assert whole.stats.iterations == small.stats.iterations == 252
    assert whole.stats.products == pytest.approx(252)


def test_an_ended_budget_keeps_the_better_of_start_and_found():
    draw = Draw(4)
    inputs = draw.normal(40, 12)
    problem = MaskProblem(draw.normal(3, 12), inputs.T @ inputs, KSparse(6))
    start = problem.polytope.round(problem.score("wanda"))
    solution = solve(problem, Enumerate(), max_iterations=5)
    assert solution.status is Status.ITERATION_LIMIT and solution.stats.iterations == 5
    assert solution.objective <= problem.objective(start)
    late = solve(problem, Enumerate(), time_limit_s=1e-9, memory_budget_bytes=10_000)
    assert late.status is Status.TIME_LIMIT and problem.polytope.contains(late.mask)


def test_too_many_masks_are_refused_before_any_work():
    with pytest.raises(RelaxPruneError, match="1048576"):
        Enumerate().check(MaskProblem(torch.ones(1, 60), torch.eye(60), KSparse(30)))


@pytest.mark.parametrize("set_name", COUNTED)
def test_masks_are_counted_as_they_are_listed(set_name, seed):
    for number in range(20):
        block = Block.of(tiny("mask", set_name, seed + number).case().problem)
        masks = block_vertices(len(block.kept), block.cells, block.keep, block.at_most, block.kept, block.pruned)
        assert block.count(VERTEX_LIMIT) == len(masks)


@pytest.mark.parametrize(
    ("shape", "polytope"),
    [
        ((2, 2048), KSparse(1024)),
        ((2, 2048), KSparse(1024, at_most=True)),
        ((512, 1024), KSparse(2**18, per="layer")),
        ((2, 2048), NM(2, 4)),
        ((8, 64), TransposableNM(4, 8)),
    ],
)
def test_large_sets_are_refused_unlisted_and_what_fits_is_named(shape, polytope, monkeypatch):
    monkeypatch.setattr(enumeration, "block_vertices", lambda *_: pytest.fail("masks were listed"))
    problem = MaskProblem(torch.ones(shape), torch.eye(shape[1]), polytope)
    with pytest.raises(RelaxPruneError, match=r"solver 'enumerate' takes at most .* has more; 'exact' .* 'fw'"):
        solve(problem, "enumerate")


def test_any_quadratic():
    draw = Draw(5)
    factor = draw.normal(6, 9)
    problem = QuadraticProblem(factor.T @ factor, draw.normal(4, 9), KSparse(4, at_most=True))
    solution = solve(problem, Enumerate(), start=None)
    masks = problem.polytope.vertices(problem.shape).squeeze(1).to(torch.float64)
    values = torch.einsum("vi,ij,vj->v", masks, problem.prepared.matrix, masks) + problem.linear @ masks.T
    assert solution.block_objective == pytest.approx(values.amin(dim=1), abs=1e-12)
