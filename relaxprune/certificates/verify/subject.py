"""What a certificate is for: the set of masks, and the SHA-256 of every tensor of the problem."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from relaxprune.problems import (
    BaseProblem,
    Face,
    MaskProblem,
    Polytope,
    QuadraticProblem,
    ReconstructionProblem,
    RelaxPruneError,
)

from .verified import CertificateError

_ENTRIES_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """The problem that a certificate is for.

    Attributes:
        polytope: the set of masks, as ``polytope_from_dict`` takes it.
        fixed_kept, fixed_pruned: (rows, cols) bool, the set's faces, or None.
        damping: of a ``ReconstructionProblem``, else None.
        sha256: hash of each tensor of the problem by name, in hexadecimal; empty for files of version 1.
    """

    polytope: dict[str, Any]
    fixed_kept: Tensor | None
    fixed_pruned: Tensor | None
    damping: float | None
    sha256: dict[str, str]

    @classmethod
    def of(cls, problem: BaseProblem) -> Self:
        """Return a problem's description.

        Raises:
            RelaxPruneError: a kind of problem that verification does not know.
        """
        polytope = problem.polytope
        kept, pruned = polytope.fixed()
        hashes = {name: _tensor_hash(tensor) for name, tensor in _tensors(problem).items()}
        return cls(
            polytope=(polytope.base if isinstance(polytope, Face) else polytope).to_dict(),
            fixed_kept=kept,
            fixed_pruned=pruned,
            damping=problem.damping if isinstance(problem, ReconstructionProblem) else None,
            sha256={**hashes, "set": _set_hash(polytope)},
        )

    def check(self, problem: BaseProblem) -> None:
        """Compare the hashes with those of the problem at hand.

        Raises:
            CertificateError: the certificate is for another weight, Gram, or set of masks.
        """
        if not self.sha256:
            return
        found = Subject.of(problem).sha256
        if sorted(found) != sorted(self.sha256):
            raise CertificateError(
                f"the certificate is for a problem of {', '.join(sorted(self.sha256))}, this one has "
                f"{', '.join(sorted(found))}"
            )
        for name, value in found.items():
            if self.sha256[name] != value:
                raise CertificateError(
                    f"the certificate is for another {name}: SHA-256 {self.sha256[name]!r}, this problem's is {value!r}"
                )


def _tensors(problem: BaseProblem) -> dict[str, Tensor]:
    """Return the tensors that a problem consists of, by name."""
    if isinstance(problem, ReconstructionProblem):
        moments = {"cross": problem.cross, "dense_gram": problem.dense_gram}
        given = {name: tensor for name, tensor in moments.items() if tensor is not None}
        return {"weight": problem.weight, "gram": problem.prepared.matrix, **given}
    if isinstance(problem, MaskProblem):
        return {"weight": problem.weight, **problem.minimised.tensors()}
    if isinstance(problem, QuadraticProblem):
        return {"linear": problem.linear, "quadratic": problem.prepared.matrix}
    raise RelaxPruneError(
        f"verification knows mask, reconstruction and quadratic problems, got {type(problem).__name__}"
    )


def _tensor_hash(tensor: Tensor) -> str:
    """Return the hash of a matrix (rows, cols): its shape, and its values in float64, whatever its dtype."""
    digest = hashlib.sha256(json.dumps(list(tensor.shape)).encode())
    for part in tensor.detach().split(max(1, _ENTRIES_AT_ONCE // max(1, tensor.shape[-1]))):
        wide = part.to(torch.float64).cpu().numpy()
        digest.update((wide + 0.0).astype("<f8").tobytes())  # -0.0 is 0.0
    return digest.hexdigest()


def _set_hash(polytope: Polytope) -> str:
    """Return the hash of a set of masks with its fixed entries."""
    base = polytope.base if isinstance(polytope, Face) else polytope
    digest = hashlib.sha256(json.dumps(base.to_dict(), sort_keys=True).encode())
    for name, entries in zip(("kept", "pruned"), polytope.fixed(), strict=True):
        if entries is not None and bool(entries.any()):
            digest.update(f"{name} {list(entries.shape)}".encode())
            digest.update(np.packbits(entries.cpu().numpy()).tobytes())
    return digest.hexdigest()
