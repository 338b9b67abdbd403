"""Made-up reports, for tests of what shows and keeps them."""

from __future__ import annotations

from typing import Any

from relaxprune.pruning.layer_report import LayerReport
from relaxprune.pruning.prune_report import PruneEvent, PruneReport


def layer_report(name: str, **values: Any) -> LayerReport:
    """Return the report of a 2 x 4 layer; ``values`` replace the numbers, by their keys in files."""
    numbers = {
        "block": 0, "rows": 2, "cols": 4, "requested_sparsity": 0.5, "sparsity": 0.5, "tokens": 9, "calls": 1,
        "dense_energy": 10.0, "wanda_objective": 4.0, "objective": 2.0, "relaxed_objective": 1.5,
        "unrounded_objective": None, "rounded_objective": 2.5, "lower_bound": 1.0, "products": 20.5, "iterations": 20,
        "seconds": 0.25,
    }  # fmt: skip
    texts = {"kind": "Linear", "gram": name, "solver": "fw", "polish": "swap", "status": "CONVERGED"}
    return LayerReport.from_dict({"name": name, "parameter": f"{name}.weight", **numbers, **texts, **values})


def prune_report(*layers: LayerReport, **values: Any) -> PruneReport:
    """Return the report of a run that pruned ``layers``; ``values`` replace its other attributes."""
    rest = {"skipped": [], "seconds": {"total": 1.0}, "polytope": {"sparsity": 0.5}, "solver": "fw", "options": {}}
    return PruneReport(layers=list(layers), **{**rest, "propagation": "replay", "masks": {}, **values})


def event(kind: str, layer: str | None, report: LayerReport | None = None, **values: Any) -> PruneEvent:
    """Return an event of a run with two blocks of one layer each; ``values`` replace its numbers."""
    numbers = {"block": 0, "blocks": 2, "layer_index": 0, "layers": 2, "seconds_elapsed": 0.0}
    return PruneEvent(kind=kind, layer=layer, report=report, **{**numbers, **values})
