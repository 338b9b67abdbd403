"""The model card (``README.md``) of a run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from relaxprune.options.prune_options import new_values

from .run_record import RunNotes

CARD_NAME = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(notes: RunNotes, fingerprint: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a model card.

    Args:
        notes: command, base model, licence, notices.
        fingerprint: the run's fingerprint as plain JSON values.
        layers: each pruned layer's report as plain JSON values.

    Returns:
        Markdown with a YAML header (``base_model`` only if it is the id of a hub model, ``license`` only if known).
    """
    settings, calibration = fingerprint["settings"], fingerprint["calibration"]
    lines = [*_header(notes), f"# {notes.base_model}, pruned by relaxprune", ""]
    lines += [
        f"{len(layers)} layers of `{notes.base_model}` are pruned to {_pattern(settings['polytope'])} by relaxprune "
        f"{fingerprint['software']['relaxprune']} (solver `{settings['solver']}`). Pruned weights are exactly zero, "
        f"{_kept(settings)}{_order(settings)}. Zeros alone do not make a model faster.",
        "",
        "| | |",
        "| --- | --- |",
        f"| base model | {notes.base_model}{_commit(fingerprint)} |",
        f"| licence | {notes.license or 'not stated by the base model; see there'} |",
        f"| sparsity of the pruned layers | {_sparsity(layers):.4f} |",
        f"| mean relative error of a layer's output | {_mean(layers, 'relative_error')} |",
        f"| calibration | {calibration['source']}, {calibration['windows']} windows of {calibration['length']} |",
        "",
        "Made by",
        "",
        "```console",
        f"$ {notes.command}",
        "```",
        "",
        "`masks.safetensors` holds the masks (one bit per weight), `relaxprune.json` every setting and, per layer, the",
        "error, the proven lower bound and the gap.",
    ]
    if settings.get("certify") is not None:
        lines += ["`certificates/` holds the proof of every layer's bound."]
    lines += ["", "## Notices", "", *(f"- {notice}" for notice in notes.notices)] if notes.notices else []
    return "\n".join(lines) + "\n"


def _kept(settings: Mapping[str, Any]) -> str:
    """Return a clause on what happened to the kept weights."""
    if not new_values(settings):
        return "kept weights are those of the base model, bit for bit"
    ways = ["fitted to the calibration text by least squares"] if settings.get("weights") == "refit" else []
    ways += ["tuned block by block towards what the dense blocks put out"] if settings.get("tune") else []
    ways += ["tuned together towards the predictions of the base model"] if settings.get("refine") else []
    return f"kept weights have new values, {', then '.join(ways)}"


def _header(notes: RunNotes) -> list[str]:
    """Return the YAML header as hubs read it."""
    header = ["---", "library_name: transformers"]
    if _HUB_ID.fullmatch(notes.base_model):
        header.append(f"base_model: {notes.base_model}")
    if notes.license:
        header.append(f"license: {notes.license}")
    return [*header, "tags:", "- pruned", "- sparse", "- relaxprune", "---", ""]


def _commit(fingerprint: Mapping[str, Any]) -> str:
    commit = fingerprint["model"].get("commit")
    return f", commit `{commit}`" if commit else ""


def _order(settings: Mapping[str, Any]) -> str:
    """Return a clause on the order of channels, if it is not the base model's."""
    return ", in the order of channels that `relaxprune.json` states" if settings.get("permute") else ""


def _pattern(polytope: Mapping[str, Any]) -> str:
    """Return in words what was asked for (``Target.to_dict``)."""
    if "sparsity" in polytope:
        return f"sparsity {polytope['sparsity']} in every row"
    if "pattern" in polytope:
        keep, group = polytope["pattern"].split(":")
        return f"{polytope['pattern']} ({keep} of every {group} consecutive weights of a row are kept)"
    return f"the set `{dict(polytope)}`"


def _sparsity(layers: Sequence[Mapping[str, Any]]) -> float:
    """Return the fraction of all the pruned layers' weights that their masks prune."""
    total = sum(layer["rows"] * layer["cols"] for layer in layers)
    pruned = sum(layer["sparsity"] * layer["rows"] * layer["cols"] for layer in layers)
    return pruned / total if total else 0.0


def _mean(layers: Sequence[Mapping[str, Any]], key: str) -> str:
    values = [layer[key] for layer in layers if layer[key] is not None]
    return f"{sum(values) / len(values):.5f}" if values else "unknown"
