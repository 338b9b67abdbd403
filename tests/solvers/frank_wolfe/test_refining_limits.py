"""Refining keeps the limits that a solve is given, and says when a computation breaks down."""

from __future__ import annotations

import time

import pytest
import torch

from relaxprune import NM, KSparse, MaskProblem, Status, TransposableNM, solve
from relaxprune.problems.mask_problem import WorkingMask
from relaxprune.solvers.base import CHECK_EVERY
from relaxprune.solvers.frank_wolfe.engine.annealing import Annealing
from relaxprune.solvers.frank_wolfe.fw import EFFORTS
from tests.layers import correlated_gram
from tests.random_problems import Draw

FIRST = EFFORTS["default"].iterations


def hard(polytope=None, rows: int = 8, cols: int = 48) -> MaskProblem:
    draw = Draw(5)
    return MaskProblem(draw.normal(rows, cols), correlated_gram(cols, draw), polytope or KSparse(cols // 2))


def test_a_round_ends_soon_after_the_time_limit(monkeypatch):
    """A clock that a step moves by a second: the limit falls into the annealing that follows the first one."""
    now, step = [0.0], Annealing.step

    def slow(self, problem):
        now[0] += 1.0
        step(self, problem)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Annealing, "step", slow)
    solution = solve(hard(), time_limit_s=FIRST + 25.0)
    assert solution.status is Status.TIME_LIMIT
    assert FIRST < solution.stats.iterations <= FIRST + 25 + CHECK_EVERY


def test_a_computation_that_breaks_down_while_refining_is_reported(monkeypatch):
    image, calls = WorkingMask.image, [0]

    def broken(self, direction, out=None):
        calls[0] += direction.dtype == torch.float32
        product = image(self, direction, out)
        return product * float("nan") if calls[0] > FIRST + 20 and direction.dtype == torch.float32 else product

    monkeypatch.setattr(WorkingMask, "image", broken)
    problem = hard()
    solution = solve(problem, throw=False)
    assert solution.status is Status.NOT_FINITE
    assert problem.feasible(solution.mask)
    calls[0] = 0
    with pytest.raises(FloatingPointError):
        solve(problem)


def test_a_callback_hears_of_every_ten_iterations_and_may_stop_a_round():
    heard = []
    solve(hard(), callback=heard.append)
    iterations = [progress.iteration for progress in heard if progress.solver == "fw"]
    assert max(b - a for a, b in zip([0, *iterations], iterations, strict=False)) <= CHECK_EVERY
    assert iterations[-1] == EFFORTS["default"].total()

    def stop(progress):
        if progress.iteration > FIRST:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(hard(), callback=stop)


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_schedule_gone_through_has_converged_and_a_compressed_one_has_not(effort):
    problem = hard()
    assert solve(problem, effort=effort).status is Status.CONVERGED
    assert solve(problem, effort=effort, max_iterations=30).status is Status.ITERATION_LIMIT


@pytest.mark.parametrize("polytope", [KSparse(24), NM(2, 4), NM(4, 8), TransposableNM(2, 4)])
def test_global_settings_change_nothing(polytope):
    problem = hard(polytope)
    mask = solve(problem, effort="best", max_iterations=350).mask
    try:
        torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(mask, solve(problem, effort="best", max_iterations=350).mask)
    finally:
        torch.set_default_dtype(torch.float32)
