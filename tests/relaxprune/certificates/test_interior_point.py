"""The interior-point method against Clarabel, on lifted rows with and without counts and cuts."""

from __future__ import annotations

import itertools

import cvxpy as cp
import numpy as np
import pytest
import torch
from scipy.linalg import null_space

from relaxprune.certificates.sdp.cuts import Cuts
from relaxprune.certificates.sdp.frame import Frame
from relaxprune.certificates.sdp.interior_point import InteriorPoint
from relaxprune.certificates.sdp.separation import violated
from tests.random_problems import Draw

N = 9


def lifted(seed: int) -> torch.Tensor:
    """The (N + 1, N + 1) matrix of a convex quadratic over ±1 with a linear part."""
    draw = Draw(seed)
    inputs = draw.normal(30, N) @ (torch.eye(N, dtype=torch.float64) + 0.5 * draw.normal(N, N))
    matrix = torch.zeros(N + 1, N + 1, dtype=torch.float64)
    matrix[1:, 1:] = inputs.T @ inputs / 30
    matrix[0, 1:] = matrix[1:, 0] = draw.normal(N)
    return matrix


def frame(counts: str) -> tuple[Frame, list[tuple[list[int], float]]]:
    """A frame, and its counts as (entries, sum of x)."""
    if counts == "none":
        return Frame(torch.full((N,), -1), torch.zeros(N, dtype=torch.float64)), []
    size = N if counts == "row" else 3
    centre = -1 / 9 if counts == "row" else 1 / 3
    groups = torch.arange(N) // size
    sums = [([j for j in range(N) if j // size == g], size * centre) for g in range(N // size)]
    return Frame(groups, torch.full((N,), centre, dtype=torch.float64)), sums


def by_clarabel(matrix: np.ndarray, sums: list[tuple[list[int], float]], cuts: Cuts | None) -> float:
    normals = np.zeros((len(sums), N + 1))
    for normal, (entries, total) in zip(normals, sums, strict=True):
        normal[[j + 1 for j in entries]] = 1
        normal[0] = -total
    basis = null_space(normals) if sums else np.eye(N + 1)
    inner = cp.Variable((basis.shape[1], basis.shape[1]), PSD=True)
    x = basis @ inner @ basis.T
    conditions = [cp.diag(x) == 1]
    if cuts is not None:
        for index, sign in zip(cuts.index[0].tolist(), cuts.sign[0].tolist(), strict=True):
            vector = np.zeros(N + 1)
            vector[index] = sign
            conditions.append(vector @ x @ vector >= 1)
    program = cp.Problem(cp.Minimize(cp.trace(matrix @ x)), conditions)
    program.solve(solver="CLARABEL")
    return float(program.value)


def run(program: InteriorPoint, steps: int = 40) -> None:
    for _ in range(steps):
        if float(program.step()[0]) < 1e-7 or bool(program.broken[0]):
            return


@pytest.mark.parametrize("counts", ["none", "row", "groups"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_value_is_clarabels(counts, seed):
    matrix, (plane, sums) = lifted(seed), frame(counts)
    program = InteriorPoint(matrix.unsqueeze(0), plane)
    run(program)
    assert float(program.value) == pytest.approx(by_clarabel(matrix.numpy(), sums, None), abs=1e-4)


@pytest.mark.parametrize("counts", ["none", "row", "groups"])
def test_with_cuts_the_value_is_clarabels(counts):
    matrix, (plane, sums) = lifted(3), frame(counts)
    program = InteriorPoint(matrix.unsqueeze(0), plane)
    run(program)
    before = float(program.value)
    cuts = violated(program.primal, program.cuts, 6)
    assert cuts is not None
    fresh = InteriorPoint(matrix.unsqueeze(0), plane)
    for _ in range(6):
        fresh.step()
    fresh.add(cuts, 0)
    run(fresh)
    expected = by_clarabel(matrix.numpy(), sums, cuts)
    assert expected > before + 1e-3, "the cuts must matter"
    assert float(fresh.value) == pytest.approx(expected, abs=1e-4)


def test_every_cut_holds_on_signs_and_is_violated_and_new():
    matrix, (plane, _) = lifted(5), frame("none")
    program = InteriorPoint(matrix.unsqueeze(0), plane)
    run(program)
    first = violated(program.primal, program.cuts, 4)
    assert first is not None and first.count == 4
    worst = first.values(program.primal)[0]
    assert bool((worst < 1).all())
    # (s·x)² − 1 = 2 (1 + ab X + ...): no cut is violated more than the ones that were chosen
    values = {}
    for i, j in itertools.combinations(range(1, N + 1), 2):
        for a, b in itertools.product((1.0, -1.0), repeat=2):
            x = program.primal[0]
            values[0, i, j, 1.0, a, b] = float(1 + a * x[0, i] + b * x[0, j] + a * b * x[i, j])
    best = sorted(values, key=values.__getitem__)[:4]
    chosen = {(*index, *sign) for index, sign in zip(first.index[0].tolist(), first.sign[0].tolist(), strict=True)}
    assert chosen == set(best)
    again = violated(program.primal, first, 4)
    assert again is not None
    others = {(*index, *sign) for index, sign in zip(again.index[0].tolist(), again.sign[0].tolist(), strict=True)}
    assert not others & chosen
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=N)), dtype=torch.float64)
    lift = torch.cat([torch.ones(len(signs), 1, dtype=torch.float64), signs], 1)
    for cuts in (first, again):
        sums = (lift[:, cuts.index[0]] * cuts.sign[0]).sum(dim=2)
        assert bool((sums.square() >= 1).all())


def test_a_relaxation_that_no_cut_is_missing_in_gives_none():
    point = torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    assert violated(torch.outer(point, point).unsqueeze(0), Cuts.none(1, torch.device("cpu")), 5) is None
