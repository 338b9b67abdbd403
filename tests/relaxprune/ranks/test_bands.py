"""Ranks that solve one problem together, each some bands of its rows, find what one process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from relaxprune import KSparse, MaskProblem, ReconstructionProblem, Solution, solve
from relaxprune.ranks import joined
from relaxprune.solving.solving import least_memory

from ..forks import told

SOLVERS: dict[str, dict[str, Any]] = {
    "fw": {"max_iterations": 30},
    "admm": {"max_iterations": 20},
    "ils": {"max_iterations": 3, "seed": 5},
    "wanda": {},
    "sparsegpt": {},
    "reconstruct": {},
}
MOVING = ("sparsegpt", "reconstruct")


def solved(solver: str, **more: Any) -> Solution:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 16, generator=generator)
    tokens = torch.randn(64, 16, generator=generator)
    kind = ReconstructionProblem if solver in MOVING else MaskProblem
    problem = kind(weight, tokens.T @ tokens / 64, KSparse(8))
    budget = 4 * least_memory(problem.mask_problem, solver)
    return solve(problem, solver, memory_budget_bytes=budget, **SOLVERS[solver], **more)


def seen(solution: Solution) -> dict[str, Any]:
    return {
        "mask": solution.mask,
        "weight": solution.weight,
        "relaxed": solution.relaxed_mask,
        "numbers": [solution.objective, solution.lower_bound, solution.unrounded_objective, solution.status.name],
        "iterations": solution.stats.iterations,
    }


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_crew_finds_what_one_process_finds(solver: str, tmp_path: Path) -> None:
    def work(rank: int) -> object:
        alone = seen(solved(solver))
        bands: set[int] = set()
        with joined() as ranks:
            crew = seen(solved(solver, crew=ranks, callback=lambda progress: bands.add(progress.band)))
        return alone, crew, sorted(bands)

    done = []
    for alone, crew, bands in told(3, work, tmp_path):
        for name, value in alone.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, crew[name]), name
            else:
                assert value == crew[name], name
        done += bands
    assert len(set(done)) > 3 and len(done) == len(set(done)), "every band is solved by one rank"
