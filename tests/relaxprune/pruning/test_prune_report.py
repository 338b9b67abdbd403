"""The report of a run: its sums, its table, and its way to plain values and back."""

from __future__ import annotations

import json
import math

import pytest
import torch

from relaxprune.models.layers import SkippedLayer
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.layer_report import LayerReport
from relaxprune.support.tables import table

from ..reports import layer_report as layer
from ..reports import prune_report


def report(*layers):
    skipped = [SkippedLayer("lm_head", "left alone")]
    masks = {item.parameter: torch.ones(item.rows, item.cols, dtype=torch.bool) for item in layers}
    return prune_report(*layers, skipped=skipped, masks=masks)


def test_means():
    whole = report(layer("a"), layer("b", rows=6, sparsity=0.25, objective=1.0))
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
    with pytest.raises(RelaxPruneError, match="a layer lacks 'parameter'"):
        LayerReport.from_dict({"name": "a"})
    with pytest.raises(RelaxPruneError, match=r"sparsity of layer 'a' must lie in \[0, 1\], got 1e\+308"):
        LayerReport.from_dict(one.to_dict() | {"sparsity": 1e308})
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


@pytest.mark.parametrize(
    ("wanda", "objective", "bound", "share"),
    [(4.0, 2.0, 1.0, 2 / 3), (4.0, 1.0, 1.0, 1.0), (4.0, 5.0, 1.0, 0.0), (1.0, 1.0, 1.0, None), (0.0, 0.0, 0.0, None)],
)
def test_proven_share(wanda, objective, bound, share):
    one = layer("a", wanda_objective=wanda, objective=objective, lower_bound=bound)
    assert one.proven_share == (None if share is None else pytest.approx(share))


def test_a_gap_of_nothing():
    assert layer("a", objective=0.0, lower_bound=-1.0).relative_gap == math.inf
    one = layer("a", objective=1.0, lower_bound=1.0 + 1e-16)
    assert one.gap == one.relative_gap == layer("a", objective=0.0, lower_bound=0.0).relative_gap == 0.0
