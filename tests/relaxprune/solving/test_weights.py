"""Masks whose weights move: solvers, weights and bounds, judged by least squares over every mask of tiny problems."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relaxprune import (
    NM,
    KSparse,
    MaskProblem,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
    SolveError,
    Status,
    TransposableNM,
    refit,
    solve,
)
from relaxprune.certificates import CertificateError, WeightCertificate, certify_weights
from tests.layers import correlated_gram
from tests.random_problems import GRAMS, Draw, make_gram

MOVERS = ("reconstruct", "alps", "obs-swap", "sparsegpt")
SETS = [KSparse(6), KSparse(6, at_most=True), NM(2, 4), KSparse(18, per="layer"), NM(1, 4)]


def problem_of(polytope, rows: int = 3, cols: int = 12, seed: int = 0, **options) -> ReconstructionProblem:
    draw = Draw(seed)
    return ReconstructionProblem(draw.normal(rows, cols), correlated_gram(cols, draw), polytope, **options)


def fitted(target: Tensor, gram: Tensor, columns: list[int]) -> float:
    """Least error of one row with weights on ``columns`` only, by numpy's pseudo-inverse."""
    t, h = target.double().numpy(), gram.double().numpy()
    if not columns:
        return float(t @ h @ t)
    v = np.zeros_like(t)
    v[columns] = np.linalg.pinv(h[np.ix_(columns, columns)], hermitian=True) @ (h[columns] @ t)
    return float((t - v) @ h @ (t - v))


def best_rows(problem: ReconstructionProblem) -> list[float]:
    """The least error of each row over all its masks, for sets of rows."""
    polytope, (rows, cols) = problem.polytope, problem.shape
    group = polytope.group if isinstance(polytope, NM) else cols
    inside = [
        list(itertools.combinations(range(start, start + group), polytope.keep)) for start in range(0, cols, group)
    ]
    masks = [[column for part in parts for column in part] for parts in itertools.product(*inside)]
    return [min(fitted(problem.target[row], problem.prepared.matrix, mask) for mask in masks) for row in range(rows)]


@pytest.mark.parametrize("solver", [*MOVERS, "fw", "wanda", "swap"])
@pytest.mark.parametrize("polytope", SETS)
def test_every_solver_gives_weights_on_a_feasible_mask(polytope, solver):
    problem = problem_of(polytope)
    if solver == "obs-swap" and polytope.is_at_most():
        with pytest.raises(RelaxPruneError, match="needs exact counts"):
            solve(problem, solver)
        return
    solution = solve(problem, solver)
    assert polytope.contains(solution.mask) and solution.mask.dtype == torch.bool
    assert solution.weight is not None and solution.weight.dtype == problem.weight.dtype
    assert bool((solution.weight[~solution.mask] == 0).all())
    gram = problem.prepared.matrix
    moved = problem.weight - solution.weight
    assert solution.objective == pytest.approx(float(((moved @ gram) * moved).sum()), rel=1e-9, abs=1e-12)
    assert solution.relative_error == pytest.approx(solution.objective / problem.reference)
    assert solution.objective <= solution.kept_objective * (1 + 1e-9) + 1e-12 or solver == "sparsegpt"
    least = refit(problem, solution.mask).objective
    assert least <= solution.objective * (1 + 1e-9) + 1e-12
    assert solution.objective == pytest.approx(least) or solver == "sparsegpt"
    assert solution.lower_bound <= solution.objective
    assert isinstance(solution.certificate, WeightCertificate)
    assert torch.equal(solution.certificate.weight, solution.weight)
    solution.certificate.verify(problem)


@pytest.mark.parametrize("polytope", [KSparse(6), NM(2, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_bound_optimum_and_answers_are_in_order(polytope, seed):
    problem = problem_of(polytope, seed=seed)
    optimum = best_rows(problem)
    bounds = certify_weights(problem, torch.zeros(problem.shape), max_iterations=200)
    assert all(low <= best * (1 + 1e-9) for low, best in zip(bounds.block_lower_bound.tolist(), optimum, strict=True))
    assert bounds.lower_bound > 0.02 * sum(optimum)
    for solver in MOVERS:
        found = solve(problem, solver).block_objective.tolist()
        assert all(value >= best * (1 - 1e-9) for value, best in zip(found, optimum, strict=True))
    descended = solve(problem, polish="obs-swap")
    assert descended.objective <= 1.1 * sum(optimum) and descended.polish == "obs-swap"


@pytest.mark.parametrize("kind", GRAMS)
@given(seed=st.integers(0, 2**31))
def test_no_bound_exceeds_the_optimum_on_hard_grams(kind, seed):
    draw = Draw(seed)
    weight, gram = draw.normal(2, 6) * 10 ** draw.uniform(-3, 3), make_gram(kind, 6, draw)
    damping = draw.pick((0.0, 1e-9, 1e-2))
    try:
        problem = ReconstructionProblem(weight, gram, KSparse(draw.whole(0, 6)), damping=damping)
    except RelaxPruneError:
        problem = ReconstructionProblem(weight, gram, KSparse(3), damping=1e-2)
    certificate = certify_weights(problem, torch.zeros(problem.shape), max_iterations=30)
    noise = 1e-9 * problem.mask_problem.dense_energy
    for low, best in zip(certificate.block_lower_bound.tolist(), best_rows(problem), strict=True):
        assert low <= best + noise
    solution = solve(problem)
    assert bool(torch.isfinite(solution.weight).all()) and solution.lower_bound <= solution.objective + noise


@pytest.mark.parametrize("polytope", [KSparse(6), NM(2, 4), KSparse(18, per="layer")])
def test_no_exchange_of_any_pair_helps_after_obs_swap(polytope):
    problem = problem_of(polytope, seed=5)
    solution = solve(problem, "obs-swap")
    assert solution.status is Status.CONVERGED and solution.stats.swaps > 0
    start = solve(problem, "wanda")
    assert solution.objective < start.objective
    group = polytope.group if isinstance(polytope, NM) else problem.shape[1]
    for row in range(problem.shape[0]):
        kept = solution.mask[row].nonzero().squeeze(1).tolist()
        now = fitted(problem.target[row], problem.prepared.matrix, kept)
        for u, p in itertools.product(kept, set(range(problem.shape[1])) - set(kept)):
            if u // group == p // group:
                other = [*(j for j in kept if j != u), p]
                assert fitted(problem.target[row], problem.prepared.matrix, other) >= now * (1 - 1e-7)


def test_obs_swap_leaves_fixed_entries_and_rows_without_a_choice():
    draw = Draw(7)
    fixed = torch.zeros(3, 12, dtype=torch.bool)
    fixed[0, :6], fixed[1, 3] = True, True
    problem = MaskProblem(draw.normal(3, 12), correlated_gram(12, draw), KSparse(6), fixed_kept=fixed)
    mask = solve(problem, "obs-swap").mask
    assert bool(mask[fixed].all()) and bool((mask.sum(dim=1) == 6).all())
    assert bool((solve(problem_of(KSparse(12)), "obs-swap").mask).all())


@pytest.mark.parametrize("blocksize", [1, 5, 128])
@pytest.mark.parametrize("polytope", [KSparse(6), NM(2, 4)])
def test_sparsegpt_is_the_surgeon_from_left_to_right(polytope, blocksize):
    problem = problem_of(polytope, rows=4, seed=3)
    weight, gram = problem.weight.clone(), problem.prepared.matrix.clone()
    gram.diagonal().add_(0.01 * gram.diagonal().mean())
    cols = weight.shape[1]
    # Each column's inverse is made afresh from what is left; the published code gets them from one factorisation.
    inverses = [torch.linalg.inv(gram[j:, j:]) for j in range(cols)]
    score = torch.stack([inverse[0, 0] for inverse in inverses])
    mask = torch.ones(4, cols, dtype=torch.bool)
    step = polytope.group if isinstance(polytope, NM) else blocksize
    for j in range(cols):
        if j % step == 0:
            stop = min(j + step, cols)
            keep = polytope.keep if isinstance(polytope, NM) else 6 * stop // cols - 6 * j // cols
            order = (weight[:, j:stop].square() / score[j:stop]).argsort(dim=1, descending=True)
            mask[:, j:stop] = torch.zeros(4, stop - j, dtype=torch.bool).scatter_(1, order[:, :keep], True)
        error = torch.where(mask[:, j], 0.0, weight[:, j] / inverses[j][0, 0])
        weight[:, j:] -= error.unsqueeze(1) * inverses[j][0]
    solution = solve(problem, "sparsegpt", blocksize=blocksize)
    assert torch.equal(solution.mask, mask)
    assert torch.allclose(solution.weight, torch.where(mask, weight, 0.0), atol=1e-8)


@pytest.mark.parametrize("polytope", [KSparse(48), NM(2, 4)])
def test_more_work_finds_better_masks(polytope):
    problem = problem_of(polytope, rows=24, cols=96, seed=1)
    found = {name: solve(problem, name).objective for name in ("sparsegpt", "alps", "wanda", "fw")}
    fast, default, best = (solve(problem, effort=effort).objective for effort in ("fast", "default", "best"))
    assert best <= default * 1.01 and default < fast < min(found["sparsegpt"], found["wanda"], found["fw"])
    assert default < found["alps"] * 1.01 and best < found["alps"] * 1.01
    assert solve(problem, polish="obs-swap").objective < min(best, default)
    assert solve(problem, max_iterations=200).objective < fast


def test_the_same_in_blocks_of_rows_and_from_every_start():
    problem = problem_of(KSparse(12), rows=20, cols=24, seed=2)
    for solver in ("reconstruct", "alps", "sparsegpt", "obs-swap"):
        whole = solve(problem, solver)
        split = solve(problem, solver, memory_budget_bytes=2**15)
        assert torch.equal(whole.mask, split.mask), solver
    start = solve(problem, "wanda").mask
    assert solve(problem, "obs-swap", start=start).objective == solve(problem, "obs-swap").objective


def test_budgets_end_a_solve():
    problem = problem_of(KSparse(24), rows=16, cols=48)
    few = solve(problem, max_iterations=3)
    assert few.stats.iterations == 3 and few.status is Status.ITERATION_LIMIT
    assert solve(problem, "obs-swap", max_iterations=1).stats.swaps <= 16
    assert solve(problem, "alps", max_iterations=2).status is Status.ITERATION_LIMIT
    late = solve(problem, max_iterations=10**6, time_limit_s=0.2)
    assert late.status is Status.TIME_LIMIT and late.stats.seconds < 5


def test_the_dense_output_is_the_target_where_cross_terms_are_given():
    draw = Draw(1)
    weight, dense = draw.normal(4, 12), draw.normal(80, 12) @ draw.normal(12, 12)
    inputs = dense + 0.5 * draw.normal(80, 12)
    gram, cross, dense_gram = (
        left.T @ right / 80 for left, right in ((inputs, inputs), (dense, inputs), (dense, dense))
    )
    problem = ReconstructionProblem(weight, gram, KSparse(6), cross=cross, dense_gram=dense_gram)
    solution = solve(problem)
    lost = (dense @ weight.T - inputs @ solution.weight.T).square().sum() / 80
    assert solution.objective == pytest.approx(float(lost))
    assert solution.lower_bound >= float(problem.residual.sum()) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: solve(problem_of(KSparse(6)).mask_problem, polish="obs-swap"), "use a ReconstructionProblem"),
        (lambda: solve(problem_of(TransposableNM(2, 4), rows=4), "obs-swap"), "use reconstruct or alps"),
        (lambda: solve(problem_of(TransposableNM(2, 4), rows=4), "sparsegpt"), "cut between columns"),
        (lambda: solve(problem_of(KSparse(6)), effort="bst"), "did you mean 'best'"),
        (lambda: solve(problem_of(KSparse(6)), "alps", damping=-1.0), r"damping must lie in \[0, 1\]"),
        (lambda: solve(problem_of(KSparse(6)), "alps", rho=0.0), "rho must lie in"),
        (lambda: solve(problem_of(KSparse(6)), dtype="float16"), "dtype must be one of float32, float64"),
        (lambda: solve(problem_of(KSparse(6)), rho=5.0), "rho must be at most 1.0"),
        (
            lambda: solve(problem_of(KSparse(6)), "sparsegpt", blocksize=0),
            "blocksize must be a whole number",
        ),
        (lambda: solve(problem_of(KSparse(6)), "sparsegpt", max_iterations=3), "does not use"),
        (lambda: solve(QuadraticProblem(torch.eye(4), torch.zeros(1, 4), KSparse(2)), "alps"), "fw or fista"),
    ],
)
def test_what_cannot_be_done_is_refused(call, words):
    with pytest.raises(RelaxPruneError, match=words):
        call()


def test_a_changed_certificate_is_found_out():
    problem = problem_of(KSparse(6))
    solution = solve(problem)
    with pytest.raises(RelaxPruneError, match="objective of row 0"):
        dataclasses.replace(solution.certificate, weight=0.9 * solution.weight).verify(problem)
    forged = dataclasses.replace(solution.certificate, lower_bound=2 * solution.objective)
    with pytest.raises(RelaxPruneError, match=r"lower_bound is .* but the bounds of the coupled blocks"):
        forged.verify(problem)
    with pytest.raises(RelaxPruneError, match="bound of row 0"):
        solution.certificate.verify(problem_of(KSparse(7)))


@pytest.mark.parametrize("sets", [KSparse(2), NM(2, 4), TransposableNM(2, 4), KSparse(8, per="layer")])
def test_certificates_of_badly_scaled_layers_verify(sets):
    gram = torch.diag(torch.tensor([1e6, 1.0, 1.0, 1e-4], dtype=torch.float64))
    gram[0, 1] = gram[1, 0] = 500.0
    weight = Draw(0).normal(4, 4) * torch.tensor([0.0, 1e-6, 1.0, 1e3])
    problem = ReconstructionProblem(weight, gram, sets, damping=0.01)
    weight = torch.where(sets.lmo(-weight.abs()) > 0.5, weight, 0.0)
    certify_weights(problem, weight).verify(problem)
    split = certify_weights(problem, weight, memory_budget_bytes=1)
    assert torch.allclose(split.block_lower_bound, certify_weights(problem, weight).block_lower_bound)


@pytest.mark.parametrize("polytope", [KSparse(6), NM(2, 4), KSparse(18, per="layer"), KSparse(6, at_most=True)])
def test_weights_that_are_no_answer_have_no_certificate(polytope):
    problem = problem_of(polytope)
    solution = solve(problem)
    certificate = certify_weights(problem, solution.weight)
    nan = solution.weight.clone()
    nan[0, 0] = torch.nan
    for weight, refused, found in (
        (problem.weight, "0 outside a mask of", "0 outside a mask of"),
        (nan, "must be finite", "holds NaN"),
        (solution.weight[:, :-1], "must be floats of shape", "has shape"),
        (solution.mask, "must be floats of shape", "weight must hold torch.float64"),
    ):
        with pytest.raises(RelaxPruneError, match=refused):
            certify_weights(problem, weight)
        with pytest.raises(CertificateError, match=found):
            dataclasses.replace(certificate, weight=weight).verify(problem)
    for name, wrong in (("max_iterations", -1), ("memory_budget_bytes", 0)):
        with pytest.raises(RelaxPruneError, match=name):
            certify_weights(problem, solution.weight, **{name: wrong})


def test_moments_that_do_not_belong_together_are_refused():
    problem = problem_of(KSparse(6))
    gram = problem.prepared.matrix
    with pytest.raises(RelaxPruneError, match="moments of the same tokens"):
        ReconstructionProblem(problem.weight, gram, KSparse(6), cross=2 * gram, dense_gram=gram)
    same = ReconstructionProblem(problem.weight, gram, KSparse(6), cross=gram, dense_gram=gram)
    assert solve(same).objective == pytest.approx(solve(problem).objective, rel=1e-6)


def test_weights_that_the_dtype_does_not_hold_are_a_failure():
    gram = 0.9 * torch.ones(4, 4, dtype=torch.float64) + 0.1 * torch.eye(4, dtype=torch.float64)
    problem = ReconstructionProblem(torch.full((1, 4), 6e4).half(), gram, KSparse(1))
    with pytest.raises(SolveError, match="left the finite numbers"):
        solve(problem)
    assert solve(problem, throw=False).status is Status.NOT_FINITE
