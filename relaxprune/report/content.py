"""The numbers of a report, as plain values: what the page shows and what its JSON holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from relaxprune import __version__
from relaxprune.masks.density import density, grid
from relaxprune.models.layer_roles import role_of
from relaxprune.options.prune_options import new_values
from relaxprune.problems.problem import relative_error
from relaxprune.pruning.layer_report import LayerReport
from relaxprune.pruning.selected import Chosen, own_grams
from relaxprune.runs.finished_run import FinishedRun
from relaxprune.runs.run_record import RECORD_NAME, UNSEALED
from relaxprune.support.json_files import is_sealed

SCHEMA_VERSION = 1
KIND = "relaxprune.report"
_PICTURES = 6
PHASES = ("wanda", "relaxed", "unrounded", "rounded", "kept", "final", "bound")
_ENERGIES = {
    "wanda": "wanda_objective",
    "relaxed": "relaxed_objective",
    "unrounded": "unrounded_objective",
    "rounded": "rounded_objective",
    "kept": "kept_objective",
    "final": "objective",
    "bound": "lower_bound",
}


def run_content(run: FinishedRun, *, masks: bool = True) -> dict[str, Any]:
    """Return everything that a report says about one run, and with ``masks`` about its masks, as plain JSON values."""
    report, fingerprint = run.record["report"], run.record["fingerprint"]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "relaxprune": __version__,
        "run": run.name,
        "folder": str(run.path),
        "summary": summary(run),
        "perplexity": [asdict(item) for item in run.evaluations],
        "error_by_role": error_by_role(run.layers),
        "layers": [
            layer_content(layer)
            | ({"density": asdict(density(layer.name, run.masks[layer.parameter], run.config))} if masks else {})
            for layer in run.layers
        ],
        "selected": selected(run.layers),
        "tunings": report.get("tunings") or [],
        "refinement": report.get("refinement"),
        **({"reselection": report["reselection"]} if report.get("reselection") else {}),
        "masks": worst_masks(run) if masks else [],
        "seconds": {"stages": report.get("seconds") or {}, "blocks": seconds_by_block(run.layers)},
        "skipped": report.get("skipped") or [],
        "repeat": {
            "command": run.record["notes"].get("command"),
            "notices": _notices(run.record),
            "finished": run.record.get("finished"),
            "fingerprint": fingerprint,
            "files": run.record["files"],
        },
    }  # fmt: skip


def _notices(record: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know about a run: what it said itself, and whether its record was changed since."""
    changed = [] if is_sealed(record) else [f"{RECORD_NAME} was changed after the run: {UNSEALED}"]
    return [*changed, *record["notes"]["notices"]]


def summary(run: FinishedRun) -> dict[str, Any]:
    """Return the numbers that a reader wants first."""
    layers, notes = run.layers, run.record["notes"]
    entries = sum(layer.rows * layer.cols for layer in layers)
    pruned = sum(round(layer.sparsity * layer.rows * layer.cols) for layer in layers)
    return {
        "base_model": notes.get("base_model"),
        "license": notes.get("license"),
        "solver": run.settings.get("solver"),
        "polytope": run.settings.get("polytope"),
        "layers": len(layers),
        "weights": entries,
        "pruned_weights": pruned,
        "sparsity": pruned / entries if entries else 0.0,
        "mean_relative_error": mean(layer.relative_error for layer in layers),
        "objective": " and ".join(sorted({layer.inputs.minimises for layer in layers})),
        "mean_gram_relative_error": mean(layer.gram_relative_error for layer in layers),
        "mean_wanda_relative_error": mean(layer.wanda_relative_error for layer in layers),
        "mean_wanda_ratio": mean(layer.wanda_ratio for layer in layers),
        # A bound below 0 proves no more than 0 does.
        "mean_relative_gap": mean(min(layer.relative_gap, 1.0) for layer in layers),
        "certificate": run.settings.get("certify"),
        "refitted": new_values(run.settings),
        "seconds": (run.record["report"].get("seconds") or {}).get("total"),
        "peak_memory_gib": None if (peak := notes.get("peak_memory_bytes")) is None else peak / 2**30,
        "machine": notes.get("machine"),
    }


def layer_content(layer: LayerReport) -> dict[str, Any]:
    """Return the numbers of one layer: its errors, and the objectives of its phases over Wanda's."""
    return {
        "name": layer.name,
        "block": layer.block,
        "role": role_of(layer.name),
        "rows": layer.rows,
        "cols": layer.cols,
        "sparsity": layer.sparsity,
        "shrinkage": layer.inputs.shrinkage,
        "minimises": layer.inputs.minimises,
        "gram_relative_error": layer.gram_relative_error,
        "relative_error": layer.relative_error,
        "wanda_relative_error": layer.wanda_relative_error,
        "wanda_ratio": layer.wanda_ratio,
        "relative_gap": min(layer.relative_gap, 1.0) if math.isfinite(layer.relative_gap) else None,
        "proven_share": layer.proven_share,
        "status": layer.cost.status,
        "seconds": layer.cost.seconds,
        "certificate_seconds": layer.bound.certificate_seconds,
        "products": layer.cost.products,
        "phases": phase_ratios(layer),
    }


def selected(layers: Sequence[LayerReport]) -> dict[str, Any] | None:
    """Return what the candidates for the shrinkage gave, on average and for each Gram; None if none was chosen."""
    chosen = Chosen.of(layers)
    if chosen is None:
        return None
    grams = [
        {"name": name, "shrinkage": read.shrinkage, "errors": read.candidate_errors}
        for (_, name), read in own_grams(layers).items()
    ]
    return {**asdict(chosen), "grams": grams}


def worst_masks(run: FinishedRun) -> list[dict[str, Any]]:
    """Return the shares kept in the cells of a grid, for the layer of each role with the largest error."""
    worst: dict[str, LayerReport] = {}
    for layer in run.layers:
        known = worst.setdefault(role_of(layer.name), layer)
        if layer.relative_error > known.relative_error:
            worst[role_of(layer.name)] = layer
    chosen = sorted(worst.values(), key=lambda layer: -layer.relative_error)[:_PICTURES]
    pattern = str((run.settings.get("polytope") or {}).get("pattern") or "1:1").rpartition(":")[2]
    group = int(pattern) if pattern.isdigit() and int(pattern) else 1
    return [
        {"name": layer.name, "rows": layer.rows, "cols": layer.cols, "shares": grid(run.masks[layer.parameter], group)}
        for layer in chosen
    ]


def phase_ratios(layer: LayerReport) -> dict[str, float | None]:
    """Return the objective at the end of each phase over that of Wanda's mask; None for a phase the solver lacks.

    Solvers keep no history of their iterations; these are the objectives that they report, each computed in float64.
    """
    base, numbers = layer.loss.wanda_objective, layer.to_dict()
    values = {name: numbers[key] for name, key in _ENERGIES.items()}
    return {name: None if value is None or base <= 0 else value / base for name, value in values.items()}


def error_by_role(layers: Iterable[LayerReport]) -> list[dict[str, Any]]:
    """Return mean relative errors of the layers with one role: of Wanda's mask, of this one, and the bound."""
    groups: dict[str, list[LayerReport]] = {}
    for layer in layers:
        groups.setdefault(role_of(layer.name), []).append(layer)
    return [
        {
            "role": role,
            "layers": len(members),
            "wanda": mean(item.wanda_relative_error for item in members),
            "this": mean(item.relative_error for item in members),
            "bound": mean(relative_error(item.lower_bound, item.loss.dense_energy) for item in members),
            "relative_gap": mean(min(item.relative_gap, 1.0) for item in members),
        }
        for role, members in groups.items()
    ]


def seconds_by_block(layers: Iterable[LayerReport]) -> list[dict[str, Any]]:
    """Return each block's seconds of solving and of certifying."""
    blocks: dict[int, list[LayerReport]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    return [
        {
            "block": block,
            "solve": sum(item.cost.seconds for item in members),
            "certify": sum(item.bound.certificate_seconds or 0.0 for item in members),
        }
        for block, members in sorted(blocks.items())
    ]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted names."""
    if not isinstance(value, Mapping):
        return {name: value}
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        leaves |= flat(item, f"{name}.{key}" if name else str(key))
    return leaves


def mean(values: Iterable[float]) -> float:
    """Return the mean of finite values, 0 for none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else 0.0
