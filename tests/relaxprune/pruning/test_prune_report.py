"""The report of a run: its sums, its table, and its way to plain values and back."""

from __future__ import annotations

import json

import pytest
import torch

from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.prune_report import LayerReport, PruneReport, SkippedLayer, table


def layer(name, **values):
    numbers = {
        "block": 0, "rows": 2, "cols": 4, "requested_sparsity": 0.5, "sparsity": 0.5, "tokens": 9, "calls": 1,
        "dense_energy": 10.0, "wanda_objective": 4.0, "objective": 2.0, "wanda_relative_error": 0.4,
        "relative_error": 0.2, "relaxed_objective": 1.5, "unrounded_objective": None, "rounded_objective": 2.5,
        "lower_bound": 1.0, "gap": 1.0, "relative_gap": 0.5, "products": 20.5, "iterations": 20, "seconds": 0.25,
    }  # fmt: skip
    texts = {"kind": "Linear", "gram": name, "solver": "fw", "polish": "swap", "status": "CONVERGED"}
    return LayerReport(name=name, parameter=f"{name}.weight", **{**numbers, **texts, **values})


def report(*layers):
    skipped = [SkippedLayer("lm_head", "left alone")]
    masks = {item.parameter: torch.ones(item.rows, item.cols, dtype=torch.bool) for item in layers}
    return PruneReport(list(layers), skipped, {"total": 1.0}, {"sparsity": 0.5}, "fw", {"seed": 0}, "replay", masks)


def test_means():
    whole = report(layer("a"), layer("b", rows=6, sparsity=0.25, objective=1.0, relative_error=0.1, relative_gap=0.0))
    assert whole.mean_relative_error == pytest.approx(0.15)
    assert whole.mean_wanda_relative_error == pytest.approx(0.4)
    assert whole.mean_wanda_ratio == pytest.approx(0.375)
    assert whole.mean_relative_gap == pytest.approx(0.25)
    assert whole.sparsity == pytest.approx((0.5 * 2 + 0.25 * 6) / 8)


def test_a_layer_without_energy_is_no_division_by_zero():
    assert layer("a", wanda_objective=0.0, objective=0.0).wanda_ratio == 1.0
    assert report().mean_relative_error == 0.0


def test_plain_values_and_back():
    one = layer("a")
    assert LayerReport.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    with pytest.raises(RelaxPruneError, match="exactly the keys"):
        LayerReport.from_dict({"name": "a"})
    values = json.loads(json.dumps(report(one).to_dict()))
    assert "masks" not in values
    assert values["skipped"] == [{"name": "lm_head", "reason": "left alone"}]
    assert values["layers"][0]["objective"] == 2.0


def test_the_table_has_every_layer_and_every_skipped_one():
    text = str(report(layer("model.a"), layer("model.b", status="TIME_LIMIT")))
    for part in ("model.a", "model.b", "TIME_LIMIT", "mean", "lm_head: left alone", "0.2000"):
        assert part in text


def test_columns_are_aligned():
    lines = table([("name", "x"), ("a", 1.0), ("longer", 12)])
    assert lines == ["name         x", "a       1.0000", "longer      12"]
