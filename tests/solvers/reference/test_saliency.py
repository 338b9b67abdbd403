from __future__ import annotations

import pytest
import torch

from relaxprune import KSparse, MaskProblem, solve
from relaxprune.problems.saliency import SALIENCIES, saliency
from tests.layers import POLYTOPES, layer


@pytest.mark.parametrize("solver", SALIENCIES)
@pytest.mark.parametrize("name", POLYTOPES)
@pytest.mark.parametrize("fixed", [False, True])
def test_one_shot_masks_keep_the_largest_scores(solver, name, fixed):
    problem, rule = layer(name, fixed=fixed)
    solution = solve(problem, solver)
    assert rule.feasible(solution.mask) and solution.polish is None
    score = saliency(solver, problem.weight, problem.gram.diagonal())
    if not fixed:
        for cell in rule.cells:
            kept, scores = solution.mask.flatten()[list(cell)], score.flatten()[list(cell)]
            assert int(kept.sum()) == rule.keep  # all scores are positive here
            assert float(scores[kept].min()) >= float(scores[~kept].max())
    assert solution.relaxed_mask is None and solution.unrounded_objective is None and solution.rounding_loss is None


def test_wanda_is_optimal_and_proven_so_for_one_entry_per_row():
    problem = MaskProblem(torch.tensor([[3.0, 0.0, 0.0]]), torch.diag(torch.tensor([1.0, 2.0, 3.0])), KSparse(1))
    solution = solve(problem, "wanda")
    assert solution.objective == 0.0 and solution.relative_gap == 0.0 and solution.status.name == "OPTIMAL"


def test_the_power_of_ria_is_an_option():
    problem, _ = layer("row")
    for power in (0.5, 1.0):
        expected = problem.polytope.round(saliency("ria", problem.weight, problem.gram.diagonal(), power))
        assert torch.equal(solve(problem, "ria", power=power).mask, expected)


def test_a_polish_is_possible_when_asked_for():
    problem, _ = layer("row")
    plain, polished = solve(problem, "wanda"), solve(problem, "wanda", polish="swap")
    assert polished.polish == "swap" and polished.objective < plain.objective
    assert torch.equal(polished.mask, solve(problem, "swap").mask)


def test_tied_scores_are_valid_and_go_to_the_lowest_column():
    problem = MaskProblem(torch.ones(2, 6), torch.eye(6), KSparse(2))
    for solver in SALIENCIES:
        assert solve(problem, solver).mask.tolist() == [[True, True, False, False, False, False]] * 2
