"""Writing certificates to disk; ``verify.claim_file`` reads them and has the layout."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relaxprune.problems import RelaxPruneError
from relaxprune.support.container import write_container

from .verify.claim import PROOF_TENSORS, ChoiceClaim, Claim, MaskClaim, WeightClaim
from .verify.claim_file import CHOICE, FIXED, FORMAT, MASK, WEIGHTS
from .verify.subject import Subject

_KINDS: dict[type[Claim], str] = {MaskClaim: MASK, WeightClaim: WEIGHTS, ChoiceClaim: CHOICE}


def save_claim(claim: Claim, subject: Subject, notes: dict[str, Any], path: str | Path) -> None:
    """Write a certificate durably and atomically.

    Args:
        claim: what it claims.
        subject: the problem that it is for.
        notes: what the file stores in addition, as JSON values.
        path: the file to create or replace.

    Raises:
        RelaxPruneError: the objective or the bound is not finite.
        OSError: the file cannot be written.
    """
    if not math.isfinite(claim.objective) or not math.isfinite(claim.lower_bound):
        raise RelaxPruneError(
            f"certificate must be of a finite objective and bound, got {claim.objective} and {claim.lower_bound}"
        )
    description = {
        "kind": _KINDS[type(claim)],
        "method": claim.method,
        "objective": claim.objective,
        "lower_bound": claim.lower_bound,
        **notes,
        "subject": {"polytope": subject.polytope, "damping": subject.damping, "sha256": subject.sha256},
    }
    fixed = dict(zip(FIXED, (subject.fixed_kept, subject.fixed_pruned), strict=True))
    tensors = {name: _stored(tensor) for name, tensor in (_tensors(claim) | fixed).items() if tensor is not None}
    write_container(Path(path), FORMAT, tensors, {"description": json.dumps(description, allow_nan=False)})


def _tensors(claim: Claim) -> dict[str, Tensor | None]:
    """Return the tensors of a claim by name."""
    if isinstance(claim, ChoiceClaim):
        return {**_tensors(claim.apart), "chosen": claim.mask}
    own = {item.name: getattr(claim, item.name) for item in fields(claim)}
    found: dict[str, Tensor | None] = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    if isinstance(claim, MaskClaim):
        found |= {name: getattr(claim.proof, name) for name in PROOF_TENSORS}
    return found


def _stored(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, a mask as uint8."""
    plain = tensor.detach().cpu().contiguous()
    return plain.byte() if plain.dtype == torch.bool else plain
