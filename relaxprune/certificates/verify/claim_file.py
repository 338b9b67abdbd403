"""Reading certificates from disk: one safetensors file with the answer, the numbers of the proof, and what it is for.

Layout, schema version 2: ``block_objective`` and ``block_lower_bound``; of a certificate of masks ``mask`` and every
tensor of ``TangentProof``, of one of weights ``weight`` and, for method perspective, ``point`` and ``tightening``; of a
set with fixed entries ``fixed_kept`` and ``fixed_pruned``; of one of hybrid masks what one of masks has, for the set in
which no row is dense, and ``chosen``, the mask itself. Masks are uint8. The metadata holds ``format``,
``schema_version`` and ``description``, JSON with the certificate's numbers, written so that every float is read back as
it was, and under ``subject`` the set of masks, the damping, and the SHA-256 of every tensor of the problem.

Version 1 has certificates of masks only, other names for three tensors, and no hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import RelaxPruneError
from relaxprune.support.container import TensorFormat, metadata_json, open_tensors, read_container

from .claim import PROOF_TENSORS, ChoiceClaim, Claim, MaskClaim, TangentProof, WeightClaim
from .subject import Subject

FORMAT = TensorFormat("certificate file", "relaxprune.certificate", version=2, keys=("description",))
MASK, WEIGHTS, CHOICE = "mask", "weights", "choice"  # what a certificate is of
FIXED = ("fixed_kept", "fixed_pruned")
_FIRST_FORMAT = TensorFormat(FORMAT.kind, FORMAT.name, version=1, keys=("description",), sealed=False)
_FIRST_NAMES = {"row_objective": "block_objective", "row_lower_bound": "block_lower_bound", "share": "tightening"}
_BLOCKS = ("block_objective", "block_lower_bound")
_OF_MASKS = {*_BLOCKS, "mask", *PROOF_TENSORS}
_TENSORS = {
    MASK: _OF_MASKS,
    WEIGHTS: {*_BLOCKS, "weight", "point", "tightening"},
    CHOICE: {*_OF_MASKS, "chosen"},
}
_OPTIONAL = {MASK: {"tightening", *FIXED}, WEIGHTS: {"point", "tightening", *FIXED}, CHOICE: {"tightening", *FIXED}}
_NUMBER = (int, float)
_NUMBERS: dict[str, dict[str, Any]] = {
    MASK: {"rows_covered": int, "checks": dict, "relaxed_objective": _NUMBER},
    WEIGHTS: {},
    CHOICE: {"apart": dict},
}
_ALWAYS: dict[str, Any] = {"method": str, "objective": _NUMBER, "lower_bound": _NUMBER, "seconds": _NUMBER}
_ENTRIES = {MASK: {*_ALWAYS, *_NUMBERS[MASK], "estimate"}, WEIGHTS: set(_ALWAYS), CHOICE: {*_ALWAYS, "apart"}}
_SET: dict[str, Any] = {
    "kind": str,
    "keep": int,
    "group": int,
    "per": str,
    "at_most": bool,
    "dense": int,
    "tile": int,
}
_METADATA = {"format", "schema_version", "description", "sha256"}


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredClaim:
    """What a certificate file holds.

    Attributes:
        claim: what it claims, on the CPU; its subject is set.
        description: all its numbers by name, including those that the proof does not depend on.
    """

    claim: Claim
    subject: Subject
    description: dict[str, Any]


def read_claim(path: str | Path) -> StoredClaim:
    """Read a certificate file. Its content is not trusted until ``verify`` has checked it.

    Args:
        path: a file that ``Certificate.save`` made.

    Raises:
        RelaxPruneError: there is no such file, it is no certificate, of another version, damaged, or incomplete.
    """
    path = Path(path)
    if not path.is_file():
        raise RelaxPruneError(f"certificate file {str(path)!r} does not exist")
    form = _format(path)
    tensors, metadata = read_container(path, form)
    description = metadata_json(metadata, "description", path, form)
    try:
        _refuse_more("an entry of the metadata", metadata, _METADATA)
        if form is _FIRST_FORMAT:
            tensors, description = _lifted_tensors(tensors), _lifted(description)
        kind = description["kind"]
        _check_description(kind, description)
        _check_names(path, kind, tensors)
        subject = _subject(kind, description["subject"], tensors, hashed=form is FORMAT)
        claim = _CLAIMS[kind](description, tensors, subject)
    except (KeyError, TypeError, AttributeError) as error:
        raise RelaxPruneError(f"certificate file {str(path)!r} has a description that is not whole: {error}") from error
    return StoredClaim(claim=claim, subject=subject, description=description)


def _format(path: Path) -> TensorFormat:
    """Return the format version that a file states, the current one if it states neither."""
    with open_tensors(path, FORMAT.describe(path)) as file:
        version = file.header.metadata.get("schema_version")
    return _FIRST_FORMAT if version == str(_FIRST_FORMAT.version) else FORMAT


def _lifted(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description of version 1 as one of version 2."""
    present = dict(description)
    subject = {"polytope": present.pop("polytope"), "damping": None, "sha256": {}}
    _refuse_more("an entry of version 2", present, set(present) - {"kind", "subject"})
    return {**present, "kind": MASK, "subject": subject}


def _lifted_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of version 1 under the names of version 2."""
    _refuse_more("a tensor of version 2", tensors, set(tensors) - set(_FIRST_NAMES.values()))
    return {_FIRST_NAMES.get(name, name): tensor for name, tensor in tensors.items()}


def _refuse_more(what: str, found: Iterable[str], known: set[str]) -> None:
    """Raise TypeError where something is there that a certificate of the version does not have."""
    if more := sorted(set(found) - known):
        raise TypeError(f"there is {what} that it cannot have, {more[0]!r}")


def _check_description(kind: str, description: dict[str, Any]) -> None:
    """Raise TypeError where an entry is of another type than is written, or is none."""
    if not isinstance(kind, str) or kind not in _TENSORS:
        raise TypeError(f"kind is {kind!r}")
    for name, wanted in (_ALWAYS | _NUMBERS[kind]).items():
        value = description[name]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r}")
    _refuse_more("an entry of the description", description, _ENTRIES[kind] | {"kind", "subject"})
    if kind == CHOICE:
        _check_description(MASK, description["apart"])


def _check_names(path: Path, kind: str, tensors: dict[str, Tensor]) -> None:
    """Refuse a file that lacks a tensor, or has one that no proof uses."""
    for name in sorted(_TENSORS[kind] - _OPTIONAL[kind]):
        if name not in tensors:
            raise RelaxPruneError(f"certificate file {str(path)!r} has no tensor {name!r}")
    if left := sorted(set(tensors) - _TENSORS[kind] - _OPTIONAL[kind]):
        raise RelaxPruneError(f"certificate file {str(path)!r} has a tensor {left[0]!r}, which no certificate has")


def _subject(kind: str, stored: dict[str, Any], tensors: dict[str, Tensor], hashed: bool) -> Subject:
    """Read what the certificate is for."""
    hashes, polytope, damping = stored["sha256"], stored["polytope"], stored["damping"]
    if not isinstance(hashes, dict) or not isinstance(polytope, dict):
        raise TypeError(f"the set of masks is {polytope!r} and sha256 {hashes!r}")
    _refuse_more("an entry of the subject", stored, {"polytope", "damping", "sha256"})
    if bool(hashes) is not hashed or not all(isinstance(value, str) for value in hashes.values()):
        raise TypeError("sha256 does not hold the hashes of a problem")
    if (kind != WEIGHTS) is not (damping is None) or not isinstance(damping, (*_NUMBER, type(None))):
        raise TypeError(f"damping is {damping!r} of a certificate of {kind!r}")
    for name, value in polytope.items():
        if name not in _SET or type(value) is not _SET[name]:
            raise TypeError(f"the set of masks has {name!r}, {value!r}")
    kept, pruned = (_bits(name, tensors[name]) if name in tensors else None for name in FIXED)
    return Subject(polytope=polytope, fixed_kept=kept, fixed_pruned=pruned, damping=damping, sha256=hashes)


def _bits(name: str, tensor: Tensor) -> Tensor:
    """Return a mask that is stored as uint8; raises TypeError where it holds anything but 0 and 1."""
    if tensor.dtype != torch.uint8 or bool((tensor > 1).any()):
        raise TypeError(f"{name} holds {tensor.dtype} other than 0 and 1")
    return tensor.bool()


def _mask_claim(description: dict[str, Any], tensors: dict[str, Tensor], subject: Subject) -> MaskClaim:
    return MaskClaim(
        method=description["method"],
        objective=description["objective"],
        lower_bound=description["lower_bound"],
        block_objective=tensors["block_objective"],
        block_lower_bound=tensors["block_lower_bound"],
        subject=subject,
        mask=_bits("mask", tensors["mask"]),
        proof=TangentProof(**{name: tensors.get(name) for name in PROOF_TENSORS}),  # type: ignore[arg-type]
        shift=description["checks"]["shift"],
        rows_covered=description["rows_covered"],
    )


def _choice_claim(description: dict[str, Any], tensors: dict[str, Tensor], subject: Subject) -> ChoiceClaim:
    objective, bound = (torch.tensor([description[name]], dtype=torch.float64) for name in ("objective", "lower_bound"))
    return ChoiceClaim(
        method=description["method"],
        objective=description["objective"],
        lower_bound=description["lower_bound"],
        block_objective=objective,
        block_lower_bound=bound,
        subject=subject,
        mask=_bits("chosen", tensors["chosen"]),
        apart=replace(_mask_claim(description["apart"], tensors, subject), subject=None),
    )


def _weight_claim(description: dict[str, Any], tensors: dict[str, Tensor], subject: Subject) -> WeightClaim:
    return WeightClaim(
        method=description["method"],
        objective=description["objective"],
        lower_bound=description["lower_bound"],
        block_objective=tensors["block_objective"],
        block_lower_bound=tensors["block_lower_bound"],
        subject=subject,
        weight=tensors["weight"],
        point=tensors.get("point"),
        tightening=tensors.get("tightening"),
    )


_CLAIMS: dict[str, Callable[[dict[str, Any], dict[str, Tensor], Subject], Claim]] = {
    MASK: _mask_claim,
    WEIGHTS: _weight_claim,
    CHOICE: _choice_claim,
}
