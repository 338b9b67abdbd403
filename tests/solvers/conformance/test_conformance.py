"""Every solver x problem x set of masks x dtype x device, held to the same checks; see ``checks``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relaxprune import KSparse
from tests.conftest import LONG
from tests.enumeration import Rule
from tests.random_problems import GRAMS, WEIGHTS, Draw, make_gram

from .checks import (
    attempt,
    check_budgets,
    check_failure,
    check_mask,
    check_monotone,
    check_optimum,
    check_permuted,
    check_products,
    check_relaxation,
    check_repeated,
)
from .problems import KINDS, LAYERS, SETS, layer, tiny

DRAWN = settings(max_examples=300 if LONG else 4, deadline=None, suppress_health_check=list(HealthCheck))
DTYPES = ("float32", "float64")


# Full counts take both dtypes of every problem; samples a quarter, with every set, and every kind in every dtype.
ENUMERATED = [
    (kind, set_name, dtype)
    for i, kind in enumerate(KINDS)
    for j, set_name in enumerate(SETS)
    for k, dtype in enumerate(DTYPES)
    if LONG or (i + j + 2 * k) % 4 == 0
]


@pytest.mark.parametrize(("kind", "set_name", "dtype"), ENUMERATED)
def test_an_enumerated_problem(
    name: str, kind: str, set_name: str, dtype: str, device: torch.device, seed: int
) -> None:
    case = tiny(kind, set_name, seed + 100 * SETS.index(set_name)).case(getattr(torch, dtype), device)
    solution = attempt(case, name, dtype=dtype)
    if solution is not None:
        check_mask(case, solution)
        check_optimum(case, solution)


@DRAWN
@given(data=st.data())
def test_a_drawn_problem(name: str, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES), "dtype")
    parts = tiny(
        data.draw(st.sampled_from(KINDS), "kind"),
        data.draw(st.sampled_from(SETS), "set"),
        data.draw(st.integers(0, 2**32), "seed"),
        data.draw(st.sampled_from(GRAMS), "gram"),  # ranks, duplicates, dead columns, indefinite by float noise
        10 ** data.draw(st.floats(-6, 6), "scale"),
        data.draw(st.sampled_from(WEIGHTS), "weight"),
    )
    case = parts.case(getattr(torch, dtype))
    solution = attempt(case, name, dtype=dtype)
    if solution is not None:
        check_mask(case, solution)
        check_optimum(case, solution)


@pytest.mark.parametrize(
    ("kind", "set_name"),
    [(k, s) for i, k in enumerate(KINDS) for j, s in enumerate(LAYERS) if LONG or (i + j) % 2 == 0],
)
def test_the_relaxation(name: str, kind: str, set_name: str, seed: int) -> None:
    check_relaxation(layer(kind, set_name, seed).case(), name, tolerance=1e-2)


@pytest.mark.parametrize("set_name", ["row", "2:4", *(["layer", "transposable 2:4", "face"] if LONG else [])])
def test_a_permuted_problem(name: str, set_name: str, seed: int) -> None:
    # Sums over many rows: in a single row a heuristic may well end 1 % apart.
    check_permuted(layer("mask", set_name, seed, (48, 32)), name)


@pytest.mark.parametrize("set_name", ["row", "layer"])
def test_the_same_seed_gives_the_same_mask(name: str, set_name: str, seed: int) -> None:
    check_repeated(layer("mask", set_name, seed).case(), name)


@pytest.mark.parametrize("keep", [0, 5])
def test_nothing_or_everything_is_kept(name: str, keep: int, seed: int) -> None:
    parts = tiny("mask", "row", seed)
    shape = (2, 5)
    draw = Draw(seed)
    gram, weight = make_gram("gaussian", 5, draw), draw.normal(*shape)
    case = replace(
        parts, weight=weight, gram=gram, polytope=KSparse(keep), rule=Rule.groups(shape, keep, 5), label=f"keep {keep}"
    ).case()
    solution = attempt(case, name)
    assert solution is not None and bool((solution.mask == (keep > 0)).all())
    check_mask(case, solution)
    check_optimum(case, solution)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("set_name", ["row", "layer"])
def test_products_are_counted(name: str, kind: str, set_name: str, seed: int) -> None:
    check_products(layer(kind, set_name, seed).case(), name)
    check_products(tiny(kind, set_name, seed).case(), name)


@pytest.mark.parametrize("set_name", ["row", "2:4"])
def test_budgets_are_kept(name: str, set_name: str, device: torch.device, seed: int) -> None:
    check_budgets(layer("mask", set_name, seed, (4, 24)).case(torch.float32, device), name)
    check_budgets(tiny("mask", "row", seed).case(torch.float32, device), name)


@pytest.mark.parametrize("kind", KINDS)
def test_failure_is_a_status(name: str, kind: str, seed: int) -> None:
    check_failure(layer(kind, "row", seed).case(), name)


@pytest.mark.parametrize(
    ("kind", "set_name"),
    [(k, s) for i, k in enumerate(KINDS) for j, s in enumerate(("row", "layer", "2:4")) if LONG or (i + j) % 2 == 0],
)
def test_descent_is_monotone_where_promised(name: str, kind: str, set_name: str, seed: int) -> None:
    check_monotone(layer(kind, set_name, seed).case(), name)
