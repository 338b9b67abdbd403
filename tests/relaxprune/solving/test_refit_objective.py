"""Weights on a mask that minimise an objective of several parts, against normal equations of all rows together."""

from __future__ import annotations

import pytest
import torch

from relaxprune import KSparse, MaskProblem, Objective, RelaxPruneError, refit, solve
from tests.solvers.conformance.objectives import PARTS, with_parts


@pytest.mark.parametrize("parts", PARTS)
def test_no_weights_on_the_mask_are_better(parts: str, seed: int) -> None:
    problem = with_parts(parts, "row", seed + 3).problem
    assert isinstance(problem, MaskProblem)
    mask = solve(problem, "wanda").mask
    found = refit(problem, mask)
    moved = found.weight.clone().requires_grad_()
    value = problem.minimised.value(problem.weight - moved).sum()
    value.backward()
    assert moved.grad is not None and not found.weight[~mask].any()
    size = float((problem.minimised.diagonal() * problem.weight.abs()).sum())
    assert float((moved.grad * mask).abs().max()) <= 1e-4 * size
    assert found.objective == pytest.approx(float(value.detach()))
    assert found.objective <= found.kept_objective + 1e-9 * abs(found.kept_objective)


def test_a_linear_term_that_nothing_holds_is_refused() -> None:
    gram = torch.diag(torch.tensor([1.0, 0.0, 1.0]))
    problem = MaskProblem(torch.ones(1, 3), Objective(gram, linear=torch.ones(1, 3)), KSparse(3))
    with pytest.raises(RelaxPruneError, match="row 0 has no best weights on this mask"):
        refit(problem, torch.ones(1, 3, dtype=torch.bool))
