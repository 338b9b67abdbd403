"""Products in less than float32: only they are lowered, nothing is judged by them, and torch is left as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, QuadraticProblem, RelaxPruneError, solve
from relaxprune.problems import lowered
from relaxprune.problems.lowered import Lowered, check_precision
from relaxprune.solvers import Budget, Run
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe
from tests.counting import counted
from tests.layers import correlated_gram
from tests.random_problems import Draw

POLYTOPES = (KSparse(64), KSparse(64, at_most=True), KSparse(16 * 64, per="layer"), NM(2, 4))


def problem_of(polytope=POLYTOPES[0], rows: int = 16, cols: int = 128, device: torch.device | None = None):
    draw = Draw(11)
    weight, gram = draw.normal(rows, cols).to(device), correlated_gram(cols, draw).to(device)
    return MaskProblem(weight, gram, polytope)


@pytest.mark.parametrize("precision", ["half", "fp16", "bf61"])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(RelaxPruneError, match="precision must be one of full, tf32, bf16"):
        solve(problem_of(), precision=precision)


def test_float64_products_are_not_lowered():
    with pytest.raises(RelaxPruneError, match="precision must be \"full\" if dtype is 'float64'"):
        solve(problem_of(), dtype="float64", precision="bf16")


def test_a_device_without_tf32_says_so_and_one_with_it_solves(device):
    problem = problem_of(device=device)
    try:
        check_precision("tf32", device)
    except RelaxPruneError:
        with pytest.raises(RelaxPruneError, match=f'precision is "tf32", which {device} does not support'):
            solve(problem, precision="tf32")
        return
    assert solve(problem, precision="tf32").objective <= 1.01 * solve(problem).objective


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("polytope", POLYTOPES, ids=str)
def test_masks_are_as_good_and_are_judged_in_float64(polytope, effort, device):
    problem = problem_of(polytope, device=device)
    full, low = (solve(problem, effort=effort, precision=precision) for precision in ("full", "bf16"))
    assert low.objective <= 1.03 * full.objective
    assert low.objective == pytest.approx(problem.objective(low.mask), rel=1e-12)
    assert low.status is full.status
    assert low.options["precision"] == "bf16"


@pytest.mark.parametrize("polytope", POLYTOPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"gap_tolerance": 0.9}, {"max_iterations": 300}, {"anneal": False}], ids=str)
def test_reported_products_are_the_products_done(polytope, options):
    problem = problem_of(polytope)
    with counted(problem.shape[0]) as products:
        solution = solve(problem, precision="bf16", effort="fast", **options)  # crossings take products of their own
    assert solution.stats.products == pytest.approx(products.done)


@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1.0, 1e-6, 1e6]))
def test_only_images_are_lowered_and_within_the_rounding_of_their_factors(seed, scale):
    draw = Draw(seed)
    gram, polytope = scale * correlated_gram(24, draw), KSparse(12)
    for problem in (
        MaskProblem(draw.normal(4, 24), gram, polytope),
        QuadraticProblem(gram, draw.normal(4, 24), polytope),
    ):
        full = problem.working(torch.float32)
        low = full.lower("bf16")
        direction, point = draw.normal(4, 24).float(), draw.uniform(0, 1, 4, 24).float()
        assert torch.equal(low.half_gradient(point), full.half_gradient(point))
        exact, rough = full.image(direction).double(), low.image(direction).double()
        factors = direction * full.weight if isinstance(problem, MaskProblem) else direction
        bound = factors.abs().double() @ full.matrix_of_products().abs().double()
        if isinstance(problem, MaskProblem):
            bound *= full.weight.abs()
        assert bool(((rough - exact).abs() <= 2.0**-7 * bound).all())
        assert not torch.equal(rough, exact)
        assert torch.equal(low.full().image(direction), full.image(direction))
        rows = torch.tensor([2, 0])
        assert torch.equal(low.select(rows).image(direction[rows]), low.image(direction)[rows])


def test_a_device_rounds_both_factors_and_nothing_else(device):
    draw = Draw(1)
    left, right = draw.normal(40, 64).float().to(device), draw.normal(64, 64).float().to(device)
    rounded = [factor.bfloat16().double() for factor in (left, right)]
    product = Lowered.of(right, "bf16").product(left)
    assert product.dtype == torch.float32
    assert torch.allclose(product.double(), rounded[0] @ rounded[1], rtol=1e-5, atol=1e-4)


def test_the_end_of_an_annealing_is_not_lowered(monkeypatch):
    problem, solver = problem_of(), FrankWolfe(effort="fast", precision="bf16")
    working, start = solver.working(problem), problem.polytope.round(problem.score(problem.default_start))
    state = solver.init(working, start.float(), Budget.of(solver, Run(start=start)))
    progress, product = [], Lowered.product

    def noted(self, left):
        progress.append(state.progress)
        return product(self, left)

    monkeypatch.setattr(Lowered, "product", noted)
    for _ in range(80):
        solver.step(working, state)
    assert 70 <= len(progress) <= 73 and max(progress) < 0.9
    fresh = working.half_gradient(state.point()) - working.diagonal * state.centred
    assert torch.allclose(state.half_gradient, fresh, rtol=1e-4, atol=1e-4)


def test_what_ends_a_phase_is_judged_without_lowered_products():
    problem, solver = problem_of(), FrankWolfe(anneal=False, precision="bf16")
    working, start = solver.working(problem), problem.polytope.round(problem.score(problem.default_start))
    run = Run(start=start, gap_tolerance=0.5)
    state = solver.init(working, start.float(), Budget.of(solver, run))
    for _ in range(10):
        solver.step(working, state)
    before = state.half_gradient
    assert not torch.allclose(before, working.half_gradient(state.point()), rtol=1e-6, atol=1e-6)
    solver.done(working, state)
    assert torch.equal(state.half_gradient, working.half_gradient(state.point()))


SWITCHES = ("allow_tf32", "fp32_precision")


def switches() -> list[object]:
    """What torch says of products of float32 matrices."""
    found = [
        getattr(torch.backends.cuda.matmul, name) for name in SWITCHES if hasattr(torch.backends.cuda.matmul, name)
    ]
    return [*found, torch.get_float32_matmul_precision()]


def test_the_switch_of_tf32_is_as_before_whatever_happens(monkeypatch):
    """With the products replaced, since a CPU has no TF32: what is on during a product, and what is left behind."""
    before, during, multiply = switches(), [], torch.mm

    def noted(left, right, **options):
        matmul = torch.backends.cuda.matmul
        during.append(matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32)
        return multiply(left, right, **options)

    monkeypatch.setattr(lowered, "_has_tf32", lambda device: True)
    monkeypatch.setattr(torch, "mm", noted)
    problem = problem_of()
    solve(problem, effort="fast", precision="tf32")
    assert 70 <= sum(during) <= 73 < len(during)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: solve(problem, effort="fast", max_iterations=20, precision="tf32"), range(8)))
    assert switches() == before

    def broken(left, right, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torch, "mm", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        Lowered.of(torch.eye(4), "tf32").product(torch.eye(4))
    assert switches() == before
