"""Efforts, annealing again, and crossing: what they promise, and that they find more."""

from __future__ import annotations

import pytest
import torch

from relaxprune import (
    NM,
    KSparse,
    MaskProblem,
    RelaxPruneError,
    Status,
    TransposableNM,
    solve,
)
from relaxprune.solvers import make_solver
from relaxprune.solvers.base import Run
from relaxprune.solvers.exchange.engine.gains import ExchangeState
from relaxprune.solvers.frank_wolfe.engine.restricted import Entries
from relaxprune.solvers.frank_wolfe.fw import EFFORTS
from tests.enumeration import Rule, best_values
from tests.layers import POLYTOPES, correlated_gram, layer
from tests.random_problems import Draw
from tests.relaxprune.solving.test_solving import check_invariants


def hard(polytope, rows: int = 16, cols: int = 96, seed: int = 0) -> MaskProblem:
    draw = Draw(seed)
    return MaskProblem(draw.normal(rows, cols), correlated_gram(cols, draw), polytope)


@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_keeps_the_contract_on_every_set(effort, name):
    # Every set meets every effort, and every effort both faces and whole sets.
    problem, rule = layer(name, fixed=(list(POLYTOPES).index(name) + list(EFFORTS).index(effort)) % 2 == 1)
    solution = solve(problem, effort=effort, max_iterations=None if effort != "best" else 500)
    check_invariants(problem, solution, rule)
    assert solution.polish == (None if effort == "fast" else "swap")


@pytest.mark.parametrize(
    "polytope",
    [KSparse(48), NM(2, 4), NM(4, 8), KSparse(384, per="layer"), TransposableNM(2, 4), KSparse(48, at_most=True)],
)
def test_more_effort_finds_better_masks(polytope):
    problem = hard(polytope, rows=8)
    fast, default, best = (solve(problem, effort=effort, polish="swap").objective for effort in EFFORTS)
    assert best <= default * (1 + 1e-9) and default <= fast * 1.001 and best < fast


def test_the_best_effort_finds_most_optima_of_small_problems():
    problem = hard(KSparse(8), rows=24, cols=16)
    optimum = torch.from_numpy(best_values(problem.weight, problem.gram, Rule.groups((24, 16), 8, 16)).astype(float))
    found = solve(problem, effort="best").block_objective
    assert bool((found >= optimum * (1 - 1e-9)).all())
    assert int((found > optimum * (1 + 1e-9)).sum()) <= 4  # of strongly correlated inputs: one annealing misses 7


def test_iterations_and_time_bound_all_rounds():
    problem = hard(KSparse(48))
    for iterations in (1, 79, 350, 800):
        solution = solve(problem, effort="best", max_iterations=iterations)
        assert solution.stats.iterations <= iterations
    solution = solve(problem, effort="best", max_iterations=10**7, time_limit_s=0.5)
    assert solution.status is Status.TIME_LIMIT and solution.stats.seconds < 5


def test_the_seed_decides_and_is_all_that_does():
    problem = hard(KSparse(48))
    masks = [solve(problem, seed=seed).mask for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_a_callback_hears_of_every_round():
    heard = []
    solve(hard(KSparse(48)), effort="best", max_iterations=730, callback=heard.append)
    iterations = [progress.iteration for progress in heard if progress.solver == "fw"]
    assert iterations == sorted(iterations) and {330, 530, 730} <= set(iterations)


def test_an_unknown_effort_is_refused():
    with pytest.raises(RelaxPruneError, match="fast, default, best, got 'fats'; did you mean 'fast'"):
        make_solver("fw", effort="fats")


@pytest.mark.parametrize("polytope", [KSparse(48), NM(2, 4)])
def test_the_part_that_is_crossed_is_the_objective_on_these_entries(polytope):
    problem = hard(polytope)
    working, exact = problem.working(torch.float64), problem.working(torch.float64)
    descent = ExchangeState(exact, problem.polytope.round(problem.score("wanda")))
    lines = torch.tensor([1, 4, 7])
    wanted = torch.zeros(3, 96, dtype=torch.bool)
    wanted[:, 8:16] = True
    entries = Entries(descent, lines, wanted)
    part = entries.problem(working, 2)
    mask = part.polytope.round(torch.rand(part.shape, generator=torch.Generator().manual_seed(0)))
    change = part.change(mask.double()).view(3, 2)
    for line, row in enumerate(lines.tolist()):
        for copy in range(2):
            whole = descent.mask[row].clone()
            whole[entries.columns[line]] = mask[2 * line + copy]
            candidate = descent.mask.clone()
            candidate[row] = whole
            assert problem.polytope.contains(candidate)
            moved = ExchangeState(exact, candidate).objective[row] - descent.objective[row]
            assert float(change[line, copy]) == pytest.approx(float(moved), abs=1e-9)


def test_a_solver_on_its_own_gives_a_mask_and_the_polish_may_be_left_out():
    problem = hard(KSparse(48))
    answer = make_solver("fw").run(problem, Run(start=problem.polytope.round(problem.score("wanda"))))
    assert answer.point.dtype == torch.bool and problem.feasible(answer.point)
    raw = solve(problem, polish=None)
    assert raw.polish is None and raw.rounding_loss is None
    assert solve(problem).objective <= raw.objective * (1 + 1e-12)


@pytest.mark.parametrize("polytope", [KSparse(300), NM(2, 4)])
def test_masks_of_many_rows_are_crossed_side_by_side(polytope):
    # A run of lines for every few rows would keep a device waiting for its host.
    problem = hard(polytope, rows=48, cols=600)
    wanted = torch.zeros(48, 600, dtype=torch.bool)
    for line in range(48):
        wanted[line, : 4 + line] = True
    assert list(Entries.batches(problem, wanted, 8, 2**30)) == [slice(0, 48)]
    some = list(Entries.batches(problem, wanted, 8, 2**21))
    assert [part.start for part in some] == [0, *(part.stop for part in some[:-1])] and some[-1].stop == 48
    widths = [part.stop - part.start for part in some]
    assert len(some) > 2 and widths[0] > widths[-2] >= 1  # wide lines are fewer to a run
    assert len(list(Entries.batches(problem, wanted, 8, 1))) == 48
    assert not list(Entries.batches(problem, wanted[:0], 8, 2**30))
