"""How often the host waits for the device: at most once in ten iterations, and a bounded number of times between."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from relaxprune import NM, KSparse, MaskProblem, solve
from relaxprune.problems import Polytope
from relaxprune.solvers.base import CHECK_EVERY
from relaxprune.solvers.frank_wolfe.fw import EFFORTS
from tests.layers import correlated_gram
from tests.random_problems import Draw
from tests.waits import Waits

ROWS, COLS = 24, 128
POLYTOPES = {
    "row": KSparse(COLS // 2),
    "row at most": KSparse(COLS // 2, at_most=True),
    "layer": KSparse(ROWS * COLS // 2, per="layer"),
    "2:4": NM(2, 4),
    "4:8": NM(4, 8),
}
AROUND, PER_ROUND = 60, 6  # waits of preparing and judging, and of a round of descent, whatever the size


def problem_of(polytope: Polytope, device: torch.device, rows: int = ROWS) -> MaskProblem:
    draw = Draw(5)
    return MaskProblem(draw.normal(rows, COLS).to(device), correlated_gram(COLS, draw).to(device), polytope)


def test_what_waits_is_counted(device):
    """The counter itself: were it blind, the tests below would pass whatever a solver does."""
    values = torch.arange(6, device=device)
    sound = {
        "where": lambda: torch.where(values > 2, values, 0),
        "gather": lambda: values[values],
        "repeat": lambda: values.repeat_interleave(2),
        "sort": lambda: values.argsort(),
    }
    waiting = {
        "item": lambda: values.sum().item(),
        "bool": lambda: bool((values > 2).any()),
        "float": lambda: float(values[0]),
        "list": lambda: values.tolist(),
        "mask": lambda: values[values > 2],
        "write by a mask": lambda: values.__setitem__(values > 2, 1),
        "nonzero": lambda: (values > 2).nonzero(),
        "where": lambda: torch.where(values > 2),
        "repeat": lambda: values.repeat_interleave(values),
        "unique": lambda: values.unique(),
        "equal": lambda: torch.equal(values, values),
        "copy": lambda: values.cpu(),
    }
    for expected, operations in ((0, sound), (1, waiting)):
        for name, operation in operations.items():
            with Waits() as waits:
                operation()
            assert waits.count == expected, (name, waits.names)


@pytest.mark.parametrize(("effort", "precision"), [("fast", "full"), ("fast", "bf16"), ("default", "full")])
@pytest.mark.parametrize("name", POLYTOPES)
def test_iterations_wait_at_most_once_in_ten(name, effort, precision, device):
    """Rows leave, phases change and annealings begin again meanwhile; what is between annealings is counted apart."""
    problem = problem_of(POLYTOPES[name], device)
    heard, active = [(0, 0)], []

    def hear(progress):
        if progress.solver == "fw":  # its polish reports as well
            heard.append((progress.iteration, waits.count))
            active.append(progress.active_blocks)

    with Waits() as waits:
        solution = solve(problem, effort=effort, precision=precision, callback=hear)
    plan = EFFORTS[effort]
    begins = {CHECK_EVERY, *(plan.iterations + number * plan.length + CHECK_EVERY for number in range(plan.rounds))}
    assert heard[-1][0] == plan.total()
    between = 0
    for (_, before), (iteration, after) in pairwise(heard):
        if iteration in begins:
            between += after - before
        else:
            assert after - before <= 1, (iteration, waits.names[before:after])
    between += waits.count - heard[-1][1]
    assert between <= AROUND + PER_ROUND * solution.stats.swap_rounds, between
    if effort == "fast" and name in ("2:4", "4:8"):
        assert active[-1] < ROWS  # rows did leave


@pytest.mark.parametrize("name", ["row", "2:4"])
def test_waits_do_not_grow_with_rows_or_iterations(name, device):
    counts = {}
    for rows, iterations in ((8, 80), (64, 80), (64, 160)):
        problem = problem_of(POLYTOPES[name], device, rows)
        with Waits() as waits:
            solution = solve(problem, effort="fast", max_iterations=iterations, polish=None)
        counts[rows, iterations] = waits.count - PER_ROUND * solution.stats.swap_rounds
    assert counts[64, 80] <= counts[8, 80] + 5
    assert counts[64, 160] <= counts[64, 80] + 80 // CHECK_EVERY + 5
