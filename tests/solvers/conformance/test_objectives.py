"""Every solver on layers whose rows have their own Grams, Fisher terms and linear terms, held to the same checks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relaxprune import solve
from relaxprune.solvers import solver_class
from tests.conftest import LONG
from tests.random_problems import GRAMS

from .checks import attempt, check_mask, check_optimum
from .objectives import PARTS, ROW_SETS, SETS, with_parts
from .problems import Case
from .reference import frank_wolfe_gap

DRAWN = settings(max_examples=100 if LONG else 1, deadline=None, suppress_health_check=list(HealthCheck))


def check(case: Case, name: str, dtype: str) -> None:
    """Judge the mask, the bound, the relaxed mask and the certificate by independent arithmetic."""
    solution = attempt(case, name, dtype=dtype)
    if solution is None:
        return
    check_mask(case, solution)
    check_optimum(case, solution)
    solution.certificate.verify(case.problem)
    convex = case.problem.proof.psd  # of others the bound is lower by what convexity lacks
    if convex and solution.relaxed_mask is not None and solver_class(name).relaxes:
        value, gap = case.value(solution.relaxed_mask), frank_wolfe_gap(case, solution.relaxed_mask)
        slack = 1e-6 * case.form.magnitude
        assert solution.lower_bound >= value - gap - slack, f"{case.label}: weaker than the relaxed mask's own bound"


SAMPLE = [("everything", "row"), ("all and outputs", "nm at most")]


@pytest.mark.parametrize(
    ("parts", "set_name"), [(parts, name) for parts in PARTS for name in ROW_SETS] if LONG else SAMPLE
)
def test_an_enumerated_layer(name: str, parts: str, set_name: str, seed: int) -> None:
    check(with_parts(parts, set_name, seed), name, "float64")


@DRAWN
@given(data=st.data())
def test_a_drawn_layer(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(("float32", "float64")), "dtype")
    parts = data.draw(st.sampled_from(PARTS), "parts")
    case = with_parts(
        parts,
        data.draw(st.sampled_from(ROW_SETS if "outputs" in parts else SETS), "set"),
        data.draw(st.integers(0, 2**32), "seed"),
        getattr(torch, dtype),
        data.draw(st.sampled_from(GRAMS), "gram"),
    )
    check(case, name, dtype)


@pytest.mark.parametrize("parts", PARTS)
def test_no_exchange_helps_after_a_descent(parts: str, seed: int) -> None:
    case = with_parts(parts, "row", seed + 7)
    mask = solve(case.problem, "swap").mask.numpy()
    around = case.rule.neighbours(mask)
    value = float(case.form.values(mask))
    assert not len(around) or float(case.form.values(around).min()) >= value - 1e-9 * abs(value) - case.margin
