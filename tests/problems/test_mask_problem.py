from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError
from relaxprune.problems import Face, Gram
from tests.enumeration import exact_objective, magnitude
from tests.random_problems import Draw, make_gram, random_case

SEEDS = st.integers(0, 2**31)


@given(seed=SEEDS)
def test_the_objective_is_the_definition_in_exact_arithmetic(seed):
    case = random_case(seed)
    problem = case.problem
    mask = Draw(seed).bits(0.5, *problem.shape)
    exact = exact_objective(problem.weight, problem.gram, mask)
    noise = 1e-14 * magnitude(problem.weight, problem.gram)
    assert problem.objective(mask) == pytest.approx(float(exact), rel=1e-12, abs=noise), case.label
    nothing = torch.zeros(problem.shape, dtype=torch.bool)
    assert problem.dense_energy == pytest.approx(problem.objective(nothing), rel=1e-12, abs=noise)
    assert problem.reference == problem.dense_energy
    per_block = problem.block_objective(mask)
    assert per_block.dtype == torch.float64 and per_block.shape == (problem.polytope.block_count(problem.shape),)
    assert float(per_block.sum()) == problem.objective(mask)
    assert problem.objective(~nothing) == 0.0


@given(seed=SEEDS)
def test_the_gradient_is_that_of_the_objective(seed):
    case = random_case(seed, grams=("gaussian", "low rank", "float32 noise"))
    problem = case.problem
    point = Draw(seed).uniform(0, 1, *problem.shape)
    direction = Draw(seed + 1).normal(*problem.shape)
    ahead, behind = problem.objective(point + direction), problem.objective(point - direction)
    slope = float((problem.gradient(point) * direction).sum())
    # A quadratic: the central difference is exact.
    assert slope == pytest.approx((ahead - behind) / 2, rel=1e-9, abs=1e-9 * (abs(ahead) + abs(behind)))


def test_the_given_asymmetric_noise_hardly_moves_the_objective():
    draw = Draw(5)
    gram = make_gram("float32 noise", 8, draw)
    weight, mask = draw.normal(3, 8), draw.bits(0.5, 3, 8)
    residual = weight * ~mask
    direct = float(torch.trace(residual @ gram.double() @ residual.T))
    assert MaskProblem(weight, gram, KSparse(4)).objective(mask) == pytest.approx(direct, rel=1e-6)


def test_relative_error_runs_from_nothing_to_all(device):
    problem = MaskProblem(torch.randn(3, 8, device=device), torch.eye(8, device=device), KSparse(4))
    assert problem.relative_error(torch.ones(3, 8, dtype=torch.bool, device=device)) == 0.0
    assert problem.relative_error(torch.zeros(3, 8, dtype=torch.bool, device=device)) == pytest.approx(1.0)
    dead = MaskProblem(torch.zeros(3, 8), torch.eye(8), KSparse(4))
    assert dead.relative_error(torch.zeros(3, 8, dtype=torch.bool)) == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_dtype_is_judged_in_float64(dtype, device):
    weight = torch.randn(4, 8, device=device).to(dtype)
    gram = torch.eye(8, device=device)
    problem = MaskProblem(weight, gram, KSparse(4))
    mask = torch.rand(4, 8, device=device) < 0.5
    expected = float((weight.double() * ~mask).square().sum())
    assert problem.objective(mask) == pytest.approx(expected, rel=1e-14)
    assert problem.weight.dtype == dtype and problem.device == weight.device


def test_one_prepared_gram_serves_several_problems():
    gram = Gram(torch.eye(6))
    one, other = MaskProblem(torch.ones(2, 6), gram, KSparse(3)), MaskProblem(torch.ones(5, 6), gram, NM(1, 2))
    assert one.prepared is other.prepared is gram


def test_rows_and_over_are_the_same_objective():
    draw = Draw(3)
    problem = MaskProblem(draw.normal(5, 6), make_gram("gaussian", 6, draw), KSparse(3))
    mask = draw.bits(0.5, 5, 6)
    part = problem.rows(slice(1, 4))
    assert part.shape == (3, 6)
    assert torch.allclose(part.block_objective(mask[1:4]), problem.block_objective(mask)[1:4], rtol=1e-12)
    assert problem.over(NM(1, 2)).objective(mask) == problem.objective(mask)
    assert problem.over(KSparse(7, "layer")).block_objective(mask).shape == (1,)


def test_fixed_entries_become_a_face_and_leave_the_tensors_alone():
    kept = torch.zeros(2, 4, dtype=torch.bool)
    kept[:, 3] = True
    problem = MaskProblem(torch.ones(2, 4), torch.eye(4), KSparse(1), fixed_kept=kept)
    assert isinstance(problem.polytope, Face)
    assert problem.polytope.round(torch.ones(2, 4)).equal(kept)


@given(seed=SEEDS)
def test_the_working_copy_is_the_problem_up_to_a_scale_per_block(seed):
    case = random_case(seed, grams=("gaussian", "scaled", "low rank"))
    problem = case.problem
    working = problem.working(torch.float64)
    point = Draw(seed).uniform(0, 1, *problem.shape)
    half = working.half_gradient(point)
    scaled = problem.polytope.block_sum(working.row_value(point, half))
    true = problem.block_objective(point)
    energy = problem.polytope.block_sum((problem.weight.double() ** 2 * problem.gram.double().diagonal()).mean(dim=1))
    live = energy > 0
    assert torch.allclose(scaled[live] * energy[live], true[live], rtol=1e-9, atol=1e-300), case.label
    assert torch.allclose(half, working.image(point - 1), rtol=1e-12)
    assert torch.allclose(working.diagonal, working.weight**2 * working.gram.diagonal())


GOOD = {"weight": torch.ones(2, 4), "gram": torch.eye(4), "polytope": KSparse(2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": torch.ones(4)}, "weight must be a float tensor of shape (rows, cols)"),
        ({"weight": torch.ones(2, 4).long()}, "weight must be a float tensor of shape (rows, cols)"),
        ({"weight": [[1.0]]}, "weight must be a float tensor of shape (rows, cols), got list"),
        ({"weight": torch.ones(0, 4)}, "weight must have at least one row"),
        ({"weight": torch.full((2, 4), float("nan"))}, "weight holds NaN or Inf"),
        ({"weight": torch.full((2, 4), float("inf"))}, "weight holds NaN or Inf"),
        ({"gram": torch.eye(5)}, "gram is 5 x 5, but weight has 4 columns"),
        ({"gram": torch.ones(4, 3)}, "gram must be a square"),
        ({"gram": torch.eye(4) + 2 * (1 - torch.eye(4))}, "gram must be positive semidefinite"),
        ({"gram": torch.full((4, 4), float("nan"))}, "gram holds NaN or Inf"),
        ({"polytope": "2:4"}, "polytope must be a Polytope such as KSparse or NM, got str"),
        ({"polytope": KSparse(5)}, "keep is 5"),
        ({"polytope": NM(1, 3)}, "group is 3, which does not divide the 4 columns"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(change, words):
    with pytest.raises(RelaxPruneError) as refused:
        MaskProblem(**{**GOOD, **change})
    assert words in str(refused.value) and "\n" not in str(refused.value)
