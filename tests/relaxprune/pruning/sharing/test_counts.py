"""Sharing a sparsity among layers: counts against enumeration, totals, caps, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune.options.allocation import (
    Allocation,
    ErrorCurve,
    convex_steps,
    equal_marginal_counts,
    rounded_counts,
)
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError

LEVELS = (0.3, 0.5, 0.7, 0.9)


@st.composite
def curves(draw: st.DrawFn, alike: bool = False) -> dict[str, ErrorCurve]:
    """Two to four small layers with rising errors; of the same number of rows where ``alike``."""
    found = {}
    rows = draw(st.integers(1, 5))
    for number in range(draw(st.integers(2, 4))):
        errors = sorted(draw(st.lists(st.floats(1e-4, 0.9), min_size=4, max_size=4)))
        scale = draw(st.sampled_from([0.1, 1.0, 7.0]))
        shape = (rows if alike else draw(st.integers(1, 5)), draw(st.integers(3, 7)))
        found[f"layer{number}"] = ErrorCurve(*shape, scale, LEVELS, errors)
    return found


def lost(found: dict[str, ErrorCurve], counts: dict[str, int]) -> int:
    """Weights pruned in all layers."""
    return sum(curve.rows * counts[name] for name, curve in found.items())


def hull(curve: ErrorCurve, most: int) -> np.ndarray:
    """The largest convex function below a curve's costs, by its definition: the lowest chord over every point."""
    costs = curve.costs()[: most + 1]
    points = range(most + 1)
    return np.array(
        [
            min(
                costs[i] if i == j else (costs[i] * (j - at) + costs[j] * (at - i)) / (j - i)
                for i in points if i <= at
                for j in points if j >= at
            )
            for at in points
        ]
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(curves(alike=True), st.floats(0.1, 0.9), st.sampled_from([0.8, 1.0]))
def test_the_counts_are_the_best_of_all(found: dict[str, ErrorCurve], sparsity: float, cap: float) -> None:
    total = int(sum(curve.rows * curve.cols for curve in found.values()) * sparsity)
    counts = equal_marginal_counts(found, total, cap)
    most = {name: int(curve.cols * cap + 1e-9) for name, curve in found.items()}
    hulls = {name: hull(curve, most[name]) for name, curve in found.items()}
    rows = next(iter(found.values())).rows
    entries = min(total // rows, sum(most.values()))
    assert sum(counts.values()) == entries and all(counts[name] <= most[name] for name in found)
    best = min(
        sum(hulls[name][count] for name, count in zip(found, choice, strict=True))
        for choice in itertools.product(*(range(most[name] + 1) for name in found))
        if sum(choice) == entries
    )
    assert sum(hulls[name][count] for name, count in counts.items()) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(curves(), st.floats(0.05, 0.95), st.floats(0.3, 1.0))
def test_the_total_is_as_large_as_whole_entries_allow(
    found: dict[str, ErrorCurve], sparsity: float, cap: float
) -> None:
    total = int(sum(curve.rows * curve.cols for curve in found.values()) * sparsity)
    counts = equal_marginal_counts(found, total, cap)
    left = total - lost(found, counts)
    assert left >= 0
    for name, curve in found.items():
        assert 0 <= counts[name] <= curve.cols * cap + 1e-9
        assert counts[name] + 1 > curve.cols * cap + 1e-9 or curve.rows > left


@settings(max_examples=60, deadline=None)
@given(curves(), st.floats(0.0, 1.0))
def test_no_other_choice_of_as_many_weights_is_better(found: dict[str, ErrorCurve], sparsity: float) -> None:
    """With rows of any number the prefix of the cheapest steps is the best of its own total."""
    total = int(sum(curve.rows * curve.cols for curve in found.values()) * sparsity)
    counts = equal_marginal_counts(found, total, 1.0)
    hulls = {name: hull(curve, curve.cols) for name, curve in found.items()}
    dearest = max(np.diff(hulls[name]).max() / curve.rows for name, curve in found.items())
    best = min(
        sum(hulls[name][count] for name, count in zip(found, choice, strict=True))
        for choice in itertools.product(*(range(curve.cols + 1) for curve in found.values()))
        if lost(found, dict(zip(found, choice, strict=True))) == lost(found, counts)
    )
    slack = dearest * max(curve.rows for curve in found.values())
    assert sum(hulls[name][count] for name, count in counts.items()) <= best + slack + 1e-9


def test_a_curve_goes_through_what_was_measured() -> None:
    curve = ErrorCurve(3, 10, 2.0, LEVELS, [0.01, 0.02, 0.1, 0.4])
    costs = curve.costs()
    assert costs[[0, 3, 5, 7, 9, 10]] == pytest.approx([0, 0.02, 0.04, 0.2, 0.8, 2.0])
    assert (np.diff(costs) >= 0).all()


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12))
def test_convex_steps_are_those_of_the_hull(values: list[float]) -> None:
    costs = np.array(values)
    steps = convex_steps(costs)
    assert (np.diff(steps) >= -1e-12).all()
    below = costs[0] + np.concatenate([[0.0], np.cumsum(steps)])
    assert (below <= costs + 1e-9).all()
    assert below[-1] == pytest.approx(costs[-1], abs=1e-9)


def test_errors_of_zero_and_one_column() -> None:
    free = ErrorCurve(2, 10, 1.0, LEVELS, [0.0, 0.0, 0.0, 0.0])
    dear = ErrorCurve(2, 10, 1.0, LEVELS, [0.1, 0.2, 0.4, 0.8])
    thin = ErrorCurve(5, 1, 1.0, [], [])
    counts = equal_marginal_counts({"free": free, "dear": dear, "thin": thin}, 18, 1.0)
    assert counts == {"free": 9, "dear": 0, "thin": 0}


def test_shares_are_rounded_where_the_fraction_is_largest() -> None:
    shapes = {"a": (2, 10), "b": (3, 10), "c": (2, 10)}
    shares = {"a": 0.59, "b": 0.46, "c": 0.55}
    assert rounded_counts(shares, shapes, 35) == {"a": 6, "b": 4, "c": 5}, "5 less than b's row fits besides a"
    assert rounded_counts(shares, shapes, 37) == {"a": 6, "b": 5, "c": 5}
    assert rounded_counts({"a": 0.5, "b": 0.5, "c": 0.5}, shapes, 35) == {"a": 5, "b": 5, "c": 5}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "modle"}, "allocation must be one of.*did you mean 'model'"),
        ({"kind": "owl", "max_sparsity": 0.9}, "max_sparsity is 0.9, which allocation 'owl' does not use"),
        ({"kind": "model", "spread": 0.1}, "spread is 0.1, which allocation 'model' does not use"),
        ({"kind": "owl", "outliers": 0.0}, "outliers must be a positive number"),
        ({"kind": "model", "max_sparsity": float("nan")}, "max_sparsity must be a positive number"),
    ],
)
def test_options_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(RelaxPruneError, match=words):
        Allocation(**options)


@pytest.mark.parametrize(
    ("sparsity", "pattern", "allocation", "words"),
    [
        (None, "2:4", Allocation("model"), "allocation 'model' divides a sparsity, got pattern"),
        (None, "2:4", Allocation("layer"), "allocation 'layer' divides a sparsity"),
        (0.5, None, Allocation("model", max_sparsity=0.4), "max_sparsity must lie between the sparsity 0.5"),
        (0.5, None, Allocation("model", max_sparsity=1.1), "max_sparsity must lie"),
        (0.95, None, Allocation("owl"), "spread must be at most 0.025 at sparsity 0.95"),
    ],
)
def test_targets_that_make_no_sense(
    sparsity: float | None, pattern: str | None, allocation: Allocation, words: str
) -> None:
    with pytest.raises(RelaxPruneError, match=words):
        Target(sparsity, pattern, allocation=allocation)
    assert Target(0.5).to_dict() == {"sparsity": 0.5}
    assert Target(0.5, allocation=Allocation("owl", spread=0.1)).to_dict() == {
        "sparsity": 0.5,
        "allocation": "owl",
        "spread": 0.1,
    }
