"""The model card (``README.md``) of a run folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from relaxprune.options.prune_options import new_values

from .run_record import RunNotes

CARD_NAME = "README.md"
# What a card takes from a run's record, beside what every reader of a record checks.
CARD_SHAPE: Mapping[str, Any] = {
    "fingerprint": {
        "settings": {"polytope": dict, "solver": str},
        "calibration": {"source": str, "windows": int, "length": int},
        "software": {"relaxprune": str},
    }
}
_MIB = 2**20
_OWN_LOADER = "`relaxprune.load_rotated(folder)` loads the model; `AutoModelForCausalLM` alone refuses it."
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    notes: RunNotes,
    fingerprint: Mapping[str, Any],
    layers: Sequence[Mapping[str, Any]],
    certificates: bool = True,
    own_loader: bool = False,
) -> str:
    """Return the text of a model card.

    Args:
        notes: command, base model, licence, notices.
        fingerprint: the run's fingerprint as plain JSON values.
        layers: each pruned layer's report as plain JSON values.
        certificates: whether those that the run made are in the folder.
        own_loader: whether the model's basis changes between blocks, here or in its source.

    Returns:
        Markdown with a YAML header (``base_model`` only if it is the id of a hub model, ``license`` only if known).
    """
    settings = fingerprint["settings"]
    lines = [*_header(notes), f"# {notes.base_model}, pruned by relaxprune", ""]
    lines += [
        f"{len(layers)} layers of `{notes.base_model}` are pruned to {_pattern(settings['polytope'])} by relaxprune "
        f"{fingerprint['software']['relaxprune']} (solver `{settings['solver']}`). Pruned weights are exactly zero, "
        f"{_kept(fingerprint)}{_order(settings)}{_chosen_again(settings)}. Zeros alone do not make a model faster.",
        "",
        *_basis(fingerprint),
        *([_OWN_LOADER, ""] if own_loader else []),
        *_facts(notes, fingerprint, layers),
        "`masks.safetensors` holds the masks (one bit per weight), `relaxprune.json` every setting and, per layer, the",
        "error, the proven lower bound and the gap.",
    ]
    if certificates and settings.get("certify") is not None:
        lines += ["`certificates/` holds the proof of every layer's bound."]
    return "\n".join([*lines, *_notices(notes)]) + "\n"


def rotated_card(notes: RunNotes, rotation: Mapping[str, Any], own_loader: bool) -> str:
    """Return the card of a rotated dense model.

    Args:
        notes: command, base model, licence.
        rotation: what became of it (``Rotation.to_dict``).
        own_loader: whether its basis changes between blocks, here or in its source.
    """
    lines = [
        *_header(notes, ("rotated", "relaxprune")),
        f"# {notes.base_model}, rotated by relaxprune",
        "",
        f"The dense model `{notes.base_model}` in another basis: it computes the same, up to the rounding of its "
        f"weights (logits moved by {rotation['difference']:.1e} of their size), and is meant to be pruned. "
        f"{_extra(rotation)}`rotation.json` says what was rotated and how.",
        "",
        *([_OWN_LOADER, ""] if own_loader else []),
        "Made by",
        "",
        "```console",
        f"$ {notes.command}",
        "```",
    ]
    return "\n".join(lines) + "\n"


def package_card(notes: RunNotes, fingerprint: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> str:
    """Return the card of a mask package: what the masks are, and how a dense model gets them; as ``model_card``."""
    settings, model = fingerprint["settings"], fingerprint["model"]
    lines = [
        *_header(notes),
        f"# Masks for {notes.base_model}, by relaxprune",
        "",
        f"One bit for each weight of {len(layers)} layers of `{notes.base_model}`, pruned to "
        f"{_pattern(settings['polytope'])} by relaxprune {fingerprint['software']['relaxprune']} (solver "
        f"`{settings['solver']}`){_order(settings)}{_chosen_again(settings)}. There are no weights here: they come "
        f"from the base model, whose SHA-256 (`{model['weights_sha256']}`) is compared first. What comes out is the "
        "pruned model, bit for bit:",
        "",
        "```console",
        f"$ relaxprune apply . {notes.base_model} --out pruned",
        "```",
        "",
        *_facts(notes, fingerprint, layers),
        "`masks.safetensors` holds the masks, `relaxprune.json` every setting and, per layer, the error, the proven",
        "lower bound and the gap, `relaxprune-masks.json` the checksums.",
    ]
    return "\n".join([*lines, *_notices(notes)]) + "\n"


def _facts(notes: RunNotes, fingerprint: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of a run's facts, and its command."""
    calibration = fingerprint["calibration"]
    return [
        "| | |",
        "| --- | --- |",
        f"| base model | {notes.base_model}{_commit(fingerprint)} |",
        f"| licence | {notes.license or 'not stated by the base model; see there'} |",
        f"| sparsity of the pruned layers | {_sparsity(layers):.4f} |",
        *_objective(fingerprint["settings"]),
        f"| mean relative error of a layer's output | {_mean(layers, 'gram_relative_error', 'relative_error')} |",
        f"| calibration | {calibration['source']}, {calibration['windows']} windows of {calibration['length']} |",
        "",
        "Made by",
        "",
        "```console",
        f"$ {notes.command}",
        "```",
        "",
    ]


def _notices(notes: RunNotes) -> list[str]:
    """Return the section of what the user must see."""
    return ["", "## Notices", "", *(f"- {notice}" for notice in notes.notices)] if notes.notices else []


def _kept(fingerprint: Mapping[str, Any]) -> str:
    """Return a clause on what happened to the kept weights."""
    settings, rotated = fingerprint["settings"], fingerprint["model"].get("rotation")
    if not new_values(settings):
        return f"kept weights are those of {'`dense/`' if rotated else 'the base model'}, bit for bit"
    ways = ["fitted to the calibration text by least squares"] if settings.get("weights") == "refit" else []
    ways += ["tuned block by block towards what the dense blocks put out"] if settings.get("tune") else []
    ways += ["tuned together towards the predictions of the base model"] if settings.get("refine") else []
    return f"kept weights have new values, {', then '.join(ways)}"


def _chosen_again(settings: Mapping[str, Any]) -> str:
    """Return a sentence on masks that were chosen again, if they were."""
    if not settings.get("reselect"):
        return ""
    return (
        ". The masks were chosen again by the gradient of the whole model, and the errors and gaps of layers are of "
        "those before"
    )


def _basis(fingerprint: Mapping[str, Any]) -> list[str]:
    """Return what a card says of a run in a rotated basis."""
    rotation = fingerprint["model"].get("rotation")
    if not rotation:
        return []
    return [
        "Before it was pruned the base model was rotated: `dense/` holds it in that basis, in which it computes the "
        f"same up to rounding. {_extra(rotation)}",
        "",
    ]


def _extra(rotation: Mapping[str, Any]) -> str:
    """Return sentences on what a rotated model is larger and slower by, "" if it is neither."""
    untied, changes = rotation["untied_bytes"], rotation["change_bytes"]
    told = f"Its output head is no longer tied to the embedding: {untied / _MIB:.1f} MiB more. " if untied else ""
    if changes:
        told += (
            f"Its basis changes between blocks: {changes / _MIB:.1f} MiB more, and {rotation['change_share']:.1%} more "
            "multiplications in the blocks. "
        )
    return told


def _header(notes: RunNotes, tags: Sequence[str] = ("pruned", "sparse", "relaxprune")) -> list[str]:
    """Return the YAML header as hubs read it."""
    header = ["---", "library_name: transformers"]
    if _HUB_ID.fullmatch(notes.base_model):
        header.append(f"base_model: {notes.base_model}")
    if notes.license:
        header.append(f"license: {notes.license}")
    return [*header, "tags:", *(f"- {tag}" for tag in tags), "---", ""]


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


def _objective(settings: Mapping[str, Any]) -> list[str]:
    """Return the row on what layers minimised, none if that is the change of their outputs alone."""
    asked = settings.get("objective") or {}
    if not asked.get("strength"):
        return []
    return [f"| objective | {asked['kind']}, strength {asked['strength']:g}: by the gradient of the loss |"]


def _mean(layers: Sequence[Mapping[str, Any]], *keys: str) -> str:
    """Return the mean of what layers have of the first key that they have."""
    found = [next((layer[key] for key in keys if layer.get(key) is not None), None) for layer in layers]
    values = [value for value in found if value is not None]
    return f"{sum(values) / len(values):.5f}" if values else "unknown"
