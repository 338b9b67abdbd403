"""What a QuadraticProblem refuses: one sentence each, in the words of its own arguments."""

from __future__ import annotations

import pytest
import torch

from relaxprune import KSparse, RelaxPruneError
from relaxprune.problems import Gram, QuadraticProblem

INDEFINITE = torch.eye(4) + 2 * (1 - torch.eye(4))


def changed(row: int, column: int, value: float) -> torch.Tensor:
    matrix = torch.eye(4)
    matrix[row, column] = value
    return matrix


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quadratic": torch.ones(4, 3)}, "quadratic must be a square (cols, cols) tensor, got (4, 3)"),
        ({"quadratic": [[1.0]]}, "quadratic must be a square (cols, cols) tensor, got list"),
        ({"quadratic": torch.eye(4, dtype=torch.int64)}, "quadratic must hold floats, got torch.int64"),
        ({"quadratic": changed(1, 1, float("nan"))}, "quadratic holds NaN or Inf"),
        ({"quadratic": changed(0, 1, 0.25)}, "quadratic must be symmetric, but quadratic[0, 1] is 0.25 and"),
        ({"quadratic": changed(2, 2, -1.0)}, "quadratic must be positive semidefinite, but its diagonal is -1"),
        ({"quadratic": changed(2, 2, 0.0).index_put((torch.tensor([2, 3]), torch.tensor([3, 2])), torch.tensor(0.1))},
         "quadratic must be positive semidefinite, but column 2 has a zero diagonal"),
        ({"quadratic": INDEFINITE}, "quadratic must be positive semidefinite, but its smallest eigenvalue"),
        ({"quadratic": torch.eye(5)}, "quadratic is 5 x 5, but linear has 4 columns"),
        ({"quadratic": Gram(torch.eye(5))}, "quadratic is 5 x 5, but linear has 4 columns"),
        ({"linear": torch.ones(2, 4, device="meta")}, "quadratic is on cpu, but linear is on meta"),
        ({"linear": torch.ones(2, 4).int()}, "linear must be a float tensor of shape (n,) or (rows, n), got"),
        ({"linear": torch.ones(1, 2, 4)}, "linear must be a float tensor of shape (n,) or (rows, n), got"),
        ({"linear": [1.0]}, "linear must be a float tensor of shape (n,) or (rows, n), got list"),
        ({"linear": torch.full((2, 4), float("inf"))}, "linear holds NaN or Inf"),
        ({"linear": torch.ones(0, 4)}, "linear must have at least one row and one column, got (0, 4)"),
        ({"polytope": 2}, "polytope must be a Polytope such as KSparse or NM, got int"),
        ({"polytope": KSparse(5)}, "keep is 5, but each row of a 2 x 4 weight has 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_in_one_sentence(options, words):
    right = {"quadratic": torch.eye(4), "linear": torch.zeros(2, 4), "polytope": KSparse(2)}
    QuadraticProblem(**right)
    with pytest.raises(RelaxPruneError) as refused:
        QuadraticProblem(**(right | options))
    assert words in str(refused.value) and "\n" not in str(refused.value) and "gram" not in str(refused.value)


def test_one_row_may_be_a_vector():
    assert QuadraticProblem(torch.eye(4), torch.zeros(4), KSparse(2)).shape == (1, 4)


def test_a_quadratic_changed_after_its_proof_is_refused_by_its_name():
    problem = QuadraticProblem(torch.eye(4), torch.zeros(2, 4), KSparse(2))
    problem.prepared.matrix.mul_(2)
    with pytest.raises(RelaxPruneError, match="quadratic was changed in place"):
        _ = problem.proof
