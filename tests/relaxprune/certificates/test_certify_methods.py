"""The hierarchy of bounds: each is valid, and each method is at least as good as the cheaper ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from relaxprune import KSparse, MaskProblem, RelaxPruneError, TransposableNM, certify, solve
from relaxprune.certificates.row_sampling import drawn_rows, extrapolated, inclusion
from tests.conftest import LONG
from tests.enumeration import best_values, magnitude
from tests.layers import POLYTOPES, layer
from tests.random_problems import GRAMS, WEIGHTS, Draw, make_gram, make_weight, random_case
from tests.tiles import best_bands

from .test_certify import check_bounds

METHODS = ("fw", "diagonal", "sdp", "exact")


def test_every_method_is_valid_and_at_least_the_cheaper_ones(long_run, seed):
    """bound(fw) ≤ bound(diagonal) ≤ bound(sdp) ≤ bound(exact) ≤ optimum, over every set and Gram that is hard."""
    count = 20_000 if long_run else 40
    shares = []
    for number in range(count):
        case = random_case(seed * 10**6 + 500_000 + number)
        problem = case.problem
        best = best_values(problem.weight, problem.gram, case.rule)
        solution = solve(problem, max_iterations=20)
        bounds = [certify(problem, solution, method).block_lower_bound for method in METHODS]
        for bound in bounds:
            check_bounds(case, bound, best)
        size = torch.from_numpy(np.abs(best).astype(np.float64)) + problem.polytope.block_sum(problem.diagonal)
        for worse, better in itertools.pairwise(bounds):
            assert bool((worse <= better + 1e-9 * size).all()), case.label
        if float(best.sum()) > 1e-6 * float(problem.diagonal.sum()):
            shares.append(float(bounds[2].sum()) / float(best.sum()))
    assert np.median(shares) >= 0.9


def test_every_method_is_valid_for_transposable_masks(long_run, seed):
    """The same hierarchy where a band of rows shares its counts with the columns of its tiles."""
    for number in range(2_000 if long_run else 6):
        draw = Draw(seed * 10**6 + 700_000 + number)
        group = draw.whole(2, 4)
        shape = (group * draw.whole(1, 2), group * draw.whole(1, 2 if group < 4 else 1))
        kinds = draw.pick(GRAMS), draw.pick(WEIGHTS)
        gram = make_gram(kinds[0], shape[1], draw)
        keep = draw.whole(0, group)
        problem = MaskProblem(make_weight(kinds[1], shape, gram, draw), gram, TransposableNM(keep, group))
        best = best_bands(problem.weight, problem.gram, group, keep)
        solution = solve(problem, max_iterations=20)
        bounds = [certify(problem, solution, method).block_lower_bound for method in METHODS]
        noise = 1e-17 * magnitude(problem.weight, problem.gram)
        size = torch.from_numpy(np.abs(best).astype(np.float64)) + problem.polytope.block_sum(problem.diagonal)
        for bound in bounds:
            assert bool((bound.numpy() <= best + noise).all()), (draw.generator.initial_seed(), *kinds)
        for worse, better in itertools.pairwise(bounds):
            assert bool((worse <= better + 1e-9 * size).all()), (draw.generator.initial_seed(), *kinds)


@pytest.mark.parametrize(
    ("method", "name", "fixed"),
    [
        (method, name, fixed)
        for method in METHODS[:3]
        for place, name in enumerate(POLYTOPES)
        for fixed in (False, True)
        if LONG or method != "sdp" or (place + fixed) % 2 == 0
    ],
)
def test_every_method_takes_every_set(method, name, fixed):
    problem, _ = layer(name, fixed=fixed)
    mask = solve(problem, "wanda").mask
    certificate = certify(problem, mask, method)
    assert certificate.method == method and certificate.lower_bound <= solve(problem).objective
    assert certificate.lower_bound >= certify(problem, mask).lower_bound * (1 - 1e-9)


def test_the_tightened_bounds_are_worth_their_price():
    """On correlated inputs each step of the hierarchy closes much of the gap."""
    problem = correlated(rows=6, cols=40)
    solution = solve(problem, "ils")
    gaps = [certify(problem, solution.mask, method).relative_gap for method in METHODS[:3]]
    assert gaps[1] < 0.8 * gaps[0] and gaps[2] < 0.6 * gaps[1]


def test_for_a_diagonal_gram_wandas_mask_is_proven_best():
    draw = Draw(5)
    problem = MaskProblem(draw.normal(7, 30), torch.diag(draw.uniform(0.1, 5, 30)), KSparse(15))
    certificate = certify(problem, solve(problem, "wanda").mask, "diagonal")
    assert certificate.lower_bound == pytest.approx(certificate.objective, rel=1e-9)


def test_a_slightly_indefinite_gram_gives_a_valid_bound_and_says_so():
    draw = Draw(8)
    inputs = draw.normal(6, 12)
    gram = inputs.T @ inputs - 1e-5 * torch.eye(12)
    problem = MaskProblem(draw.normal(2, 12), gram, KSparse(6))
    mask = solve(problem, "enumerate").mask
    best = problem.objective(mask)
    for method in METHODS:
        certificate = certify(problem, mask, method)
        assert certificate.lower_bound <= best
        assert not certificate.checks["psd"] and certificate.checks["smallest_eigenvalue"] < 0


def test_a_tightened_solve_brings_its_own_bound():
    problem = correlated(rows=6, cols=40)
    plain, tight = solve(problem), solve(problem, tighten="diagonal")
    assert tight.lower_bound > plain.lower_bound
    assert tight.certificate.method == "diagonal"
    more = certify(problem, tight, "diagonal")
    assert more.lower_bound > tight.lower_bound, "it goes on from there"
    assert more.rows_covered == certify(problem, tight, "diagonal", rows=2).rows_covered == 6


def test_chosen_rows_alone_get_the_dearer_bound():
    problem = correlated(rows=12, cols=24)
    solution = solve(problem)
    before = certify(problem, solution)
    for method, cheaper in (("diagonal", "fw"), ("sdp", "diagonal")):
        some = certify(problem, solution, method, rows=[3, 7])
        better = (some.block_lower_bound > before.block_lower_bound * (1 + 1e-9)).nonzero().squeeze(1)
        assert better.tolist() == [3, 7]
        assert some.rows_covered == 2 and some.estimate is None
        assert some.checks["rows_by_method"][cheaper] == 10
        before = certify(problem, solution, method)


def test_drawn_rows_give_an_estimate_of_the_whole():
    problem = correlated(rows=40, cols=24)
    solution = solve(problem)
    whole, drawn = certify(problem, solution, "diagonal"), certify(problem, solution, "diagonal", rows=12, seed=3)
    estimate = drawn.estimate
    assert estimate is not None and drawn.rows_covered == estimate.rows == 12
    assert drawn.lower_bound < whole.lower_bound
    assert estimate.low <= estimate.lower_bound <= estimate.high
    assert estimate.lower_bound == pytest.approx(whole.lower_bound, rel=0.05)
    assert certify(problem, solution, "diagonal", rows=12, seed=3).lower_bound == drawn.lower_bound


def test_drawing_follows_the_objective_and_the_interval_covers():
    """Inclusion probabilities sum to the count, and the estimate is right on average."""
    draw = Draw(4)
    objective, share = draw.uniform(0.1, 4, 60).double(), draw.uniform(0.4, 0.9, 60).double()
    bound = objective * share
    chance = inclusion(objective, 20)
    assert float(chance.sum()) == pytest.approx(20) and float(chance.max()) <= 1
    seen = torch.zeros(60, dtype=torch.float64)
    estimates = []
    for seed in range(400):
        rows = drawn_rows(objective, 20, seed)
        seen[rows] += 1
        estimates.append(extrapolated(objective, bound, rows))
    assert bool(((seen / 400 - chance).abs() < 0.15).all())
    assert np.mean([item.lower_bound for item in estimates]) == pytest.approx(float(bound.sum()), rel=0.02)
    covered = np.mean([item.low <= float(bound.sum()) <= item.high for item in estimates])
    assert covered >= 0.88


def test_the_time_limit_ends_the_rounds():
    problem = correlated(rows=4, cols=40)
    solution = solve(problem)
    none = certify(problem, solution, "sdp", time_limit_s=1e-6, rows=2)
    some = certify(problem, solution, "sdp")
    assert none.rows_covered == 0 and none.estimate is None, "no row was treated, so nothing can be extrapolated"
    assert some.rows_covered == 4
    assert none.checks["rows_by_method"]["sdp"] == 0 and none.lower_bound < some.lower_bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "sdq"}, "method must be one of fw, diagonal, sdp, exact, got 'sdq'; did you mean 'sdp'?"),
        ({"method": "sdp", "rows": 0}, "rows must be a whole number of at least 1, got 0"),
        ({"method": "sdp", "rows": [0, 99]}, "different indices of the 4 rows"),
        ({"method": "sdp", "rows": [1, 1]}, "different indices of the 4 rows"),
        ({"method": "sdp", "rows": "abc"}, "different indices of the 4 rows"),
        ({"method": "sdp", "rows": {1, 2}}, "different indices of the 4 rows"),
        ({"method": "sdp", "rows": 1.5}, "rows must be a whole number of at least 1, got 1.5"),
        ({"method": "fw", "rows": 2}, "rows is only for diagonal and sdp, got it for method 'fw'"),
        ({"method": "diagonal", "time_limit_s": 2.0}, "time_limit_s is only for sdp"),
        ({"method": "sdp", "time_limit_s": -1}, "time_limit_s must be a positive number, got -1"),
    ],
)
def test_what_cannot_be_right_is_refused(arguments, words):
    problem = correlated(rows=4, cols=12)
    with pytest.raises(RelaxPruneError) as refused:
        certify(problem, solve(problem, "wanda"), **arguments)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def correlated(rows: int, cols: int) -> MaskProblem:
    """A layer whose inputs share a few directions."""
    draw = Draw(11)
    inputs = draw.normal(300, cols) + draw.normal(300, cols // 4) @ draw.normal(cols // 4, cols) / 2
    return MaskProblem(draw.normal(rows, cols), inputs.T @ inputs / 300, KSparse(cols // 2))
