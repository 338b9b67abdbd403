"""What a layer minimises: values by hand, pieces of rows, targets, and refusals in one sentence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from relaxprune import NM, Gram, KSparse, MaskProblem, Objective, RelaxPruneError, solve
from relaxprune.problems.polytopes.transposable import TransposableNM
from tests.layers import correlated_gram
from tests.random_problems import Draw

ROWS, COLS = 4, 8


def parts(seed: int = 0) -> dict[str, Tensor]:
    """A weight, two Grams, and everything that an objective may have."""
    draw = Draw(seed)
    grams = torch.stack([correlated_gram(COLS, draw) for _ in range(2)])
    outputs = draw.normal(6, ROWS)
    return {
        "weight": draw.normal(ROWS, COLS),
        "grams": grams,
        "fisher": draw.normal(ROWS, 2, COLS),
        "linear": draw.normal(ROWS, COLS),
        "outputs": outputs.T @ outputs,
    }


def test_every_part_by_hand() -> None:
    given = parts()
    weight, grams, fisher, linear, outputs = (
        given[name] for name in ("weight", "grams", "fisher", "linear", "outputs")
    )
    mask = torch.zeros(ROWS, COLS, dtype=torch.bool)
    error = weight.clone()
    shared = float(torch.trace(error @ grams[0] @ error.T))
    by_group = sum(float(line @ grams[row // 2] @ line) for row, line in enumerate(error))
    own = sum(float((one @ line).square().sum()) for one, line in zip(fisher, error, strict=True))
    moved = -float((linear * error).sum())
    coupled = float(torch.trace(outputs @ error @ grams[0] @ error.T))
    for objective, expected in (
        (Objective(grams), by_group),
        (Objective(grams, row_groups=torch.tensor([0, 1, 1, 1])), None),
        (Objective(grams[0], fisher=fisher), shared + own),
        (Objective(grams[0], linear=linear), shared + moved),
        (Objective(grams[0], outputs=outputs, fisher=fisher, linear=linear), coupled + own + moved),
    ):
        problem = MaskProblem(weight, objective, KSparse(4))
        assert expected is None or problem.objective(mask) == pytest.approx(expected)
        point = torch.full_like(weight, 0.4).requires_grad_()
        half = problem.half_gradient(point.detach())
        problem.row_value(point, problem.half_gradient(point)).sum().backward()
        assert point.grad is not None
        torch.testing.assert_close(2 * half, point.grad)


def test_one_gram_is_the_same_problem_as_before() -> None:
    given = parts()
    weight, gram = given["weight"], given["grams"][0]
    plain, wrapped = (MaskProblem(weight, one, KSparse(4)) for one in (gram, Objective(Gram(gram))))
    one, other = (solve(problem, effort="fast") for problem in (plain, wrapped))
    assert torch.equal(one.mask, other.mask) and one.lower_bound == other.lower_bound
    alike = MaskProblem(weight, Objective(torch.stack([gram, gram])), KSparse(4))
    assert torch.equal(solve(alike, effort="fast").mask, one.mask)


def test_a_target_is_a_linear_term() -> None:
    given = parts()
    weight, gram, target = given["weight"], given["grams"][0], given["weight"] + given["linear"]
    problem = MaskProblem(weight, Objective.towards(target, weight, gram), KSparse(4))
    values = []
    for seed in (1, 2):
        mask = problem.polytope.round(Draw(seed).normal(ROWS, COLS))
        left = target - torch.where(mask, weight, 0.0)
        values.append((float(torch.trace(left @ gram @ left.T)), problem.objective(mask)))
    assert values[0][0] - values[1][0] == pytest.approx(values[0][1] - values[1][1])
    assert problem.reference is None and problem.relative_error(mask) is None


def test_rows_in_any_order_keep_their_grams() -> None:
    given = parts()
    groups = torch.tensor([1, 0, 1, 0])
    objective = Objective(given["grams"], row_groups=groups, fisher=given["fisher"], linear=given["linear"])
    problem = MaskProblem(given["weight"], objective, KSparse(4))
    mask = problem.polytope.round(given["weight"].abs())
    alone = [problem.rows(torch.tensor([row])).objective(mask[row : row + 1]) for row in range(ROWS)]
    assert problem.block_objective(mask).tolist() == pytest.approx(alone)
    assert [part.stop - part.start for part, _ in problem.split(1, 2**20)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gram": []}, "at least one matrix"),
        ({"gram": torch.eye(5)}, "gram is 5 x 5, but weight has 8 columns"),
        ({"gram": [torch.eye(8), torch.eye(5)]}, r"gram\[1\] is 5 x 5"),
        ({"gram": torch.eye(8).repeat(3, 1, 1)}, "3 matrices, which do not divide 4 rows: give row_groups"),
        ({"row_groups": torch.tensor([0, 1])}, r"row_groups must be whole numbers of shape \(4,\)"),
        ({"row_groups": torch.tensor([0, 1, 2, 0])}, "row_groups must lie from 0 to 1, got 0 to 2"),
        ({"fisher": torch.ones(4, 8)}, r"fisher must be a float tensor of shape \(4, rank, 8\)"),
        ({"fisher": torch.ones(3, 2, 8)}, "fisher must be a float tensor of shape"),
        ({"linear": torch.ones(4, 7)}, "linear must be a float tensor of shape"),
        ({"linear": torch.full((4, 8), torch.nan)}, "linear holds NaN or Inf"),
        ({"outputs": torch.eye(4)}, "outputs needs one Gram for all rows, got 2"),
        ({"gram": torch.eye(8), "outputs": torch.eye(3)}, "outputs must be 4 x 4"),
        ({"gram": torch.eye(8), "outputs": -torch.eye(4)}, "outputs must be positive semidefinite"),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], words: str) -> None:
    own = {"gram": torch.eye(8).repeat(2, 1, 1), **changes}
    with pytest.raises(RelaxPruneError, match=words) as refused:
        MaskProblem(torch.ones(4, 8), Objective(own.pop("gram"), **own), KSparse(4))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("polytope", "own"),
    [
        (KSparse(16, per="layer"), {}),
        (TransposableNM(2, 4), {"row_groups": torch.tensor([0, 0, 1, 1])}),
        (KSparse(16, per="layer"), {"outputs": torch.eye(4)}),
        (TransposableNM(2, 4), {"outputs": torch.eye(4)}),
    ],
)
def test_counts_over_rows_that_differ_are_refused(polytope: KSparse | NM, own: dict[str, Tensor]) -> None:
    gram = torch.eye(8) if "outputs" in own else torch.eye(8).repeat(2, 1, 1)
    with pytest.raises(RelaxPruneError, match="count"):
        MaskProblem(torch.ones(4, 8), Objective(gram, **own), polytope)


@pytest.mark.parametrize("solver", ["admm", "alps", "sparsegpt", "reconstruct", "obs-swap", "dicg", "ils"])
def test_solvers_that_cannot_say_so(solver: str) -> None:
    problem = MaskProblem(torch.ones(4, 8), Objective(torch.eye(8), outputs=torch.eye(4)), KSparse(4))
    with pytest.raises(RelaxPruneError, match="use fw, fista or swap"):
        solve(problem, solver)


def test_a_tensor_changed_in_place_is_noticed() -> None:
    given = parts()
    problem = MaskProblem(given["weight"], Objective(given["grams"][0], linear=given["linear"]), KSparse(4))
    given["linear"].mul_(2)
    with pytest.raises(RelaxPruneError, match="linear was changed in place"):
        _ = problem.proof
