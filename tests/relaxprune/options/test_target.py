"""How much to prune, as a record states it."""

from __future__ import annotations

from typing import Any

import pytest

from relaxprune import KSparse, RelaxPruneError
from relaxprune.options.allocation import Allocation
from relaxprune.options.target import Target


@pytest.mark.parametrize(
    "target",
    [
        Target(0.5),
        Target(pattern="2:4"),
        Target(polytope=KSparse(3, "layer")),
        Target(0.5, allocation=Allocation("layer")),
        Target(0.5, allocation=Allocation("owl", outliers=7, spread=0.1)),
        Target(0.5, allocation=Allocation("model", max_sparsity=0.6)),
    ],
)
def test_a_target_survives_its_record(target: Target) -> None:
    assert Target.from_dict(target.to_dict()) == target


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"sparsity": None},
        {"sparsity": []},
        {"sparsity": 0.5, "pattern": "2:4"},
        {"pattern": 24},
        {"polytope": None},
        {"polytope": {"kind": {}}},
        {"sparsity": 0.5, "allocation": ["owl"]},
        {"sparsity": 0.5, "allocation": "model", "max_sparsity": "x"},
    ],
)
def test_what_is_no_target_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(RelaxPruneError):
        Target.from_dict(data)
