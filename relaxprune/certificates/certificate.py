"""The base of all certificates: a bound on all feasible answers, and the gap of one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from relaxprune.problems import BaseProblem
from relaxprune.support.markup import piece

from .saving import save_claim
from .verify import Verification, verify
from .verify.claim import Claim
from .verify.subject import Subject


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate(ABC):
    """A lower bound on the objective of every feasible answer, recomputed from the problem, never a solver's own claim.

    Attributes:
        method: the method that was asked for.
        objective: of the answer that was certified, float64.
        lower_bound: proven to be at most the objective of every feasible answer of the problem as given.
        block_objective, block_lower_bound: (blocks,) float64, per coupled block; the sums are the two numbers above.
        seconds: time to compute the bound.
        subject: the problem it was saved for, with hashes; None unless it was read from a file.
    """

    method: str
    objective: float
    lower_bound: float
    block_objective: Tensor
    block_lower_bound: Tensor
    seconds: float
    subject: Subject | None = None

    @property
    def gap(self) -> float:
        """``objective`` − ``lower_bound``, at least 0: rounding may put the two a last digit apart."""
        return max(0.0, self.objective - self.lower_bound)

    @property
    def relative_gap(self) -> float:
        """``gap`` / abs(``objective``); for a zero objective 0, or infinity if the problem may go below 0."""
        if self.objective:
            return self.gap / abs(self.objective)
        return math.inf if self.gap > 0 and not self.nonnegative else 0.0

    @property
    def nonnegative(self) -> bool:
        """Whether no answer has an objective below 0, up to rounding."""
        return True

    @property
    @abstractmethod
    def claim(self) -> Claim:
        """What ``verify`` checks, as a plain value."""

    @property
    @abstractmethod
    def notes(self) -> dict[str, Any]:
        """What a file stores in addition to the claim, as JSON values; the proof does not depend on it."""

    def verify(self, problem: BaseProblem, exact: bool = False) -> Verification:
        """Check the certificate against the problem, with code independent of the code that made it.

        Args:
            problem: the problem that the certificate is for.
            exact: compute in rational numbers; at most 64 rows and 24 columns.

        Raises:
            CertificateError: something does not hold.
            RelaxPruneError: the problem is of another kind, or too large for ``exact``.
        """
        return verify(problem, self.claim, exact)

    def save(self, problem: BaseProblem, path: str | Path) -> None:
        """Write a file that ``load_certificate`` and ``relaxprune verify`` read.

        Args:
            problem: the problem that the certificate is for; its set of masks and the hashes of its tensors are stored.
            path: the file to create or replace, atomically.

        Raises:
            RelaxPruneError: the objective or the bound is not finite.
            OSError: the file cannot be written.
        """
        save_claim(self.claim, Subject.of(problem), self.notes, path)

    def _repr_html_(self) -> str:
        """Show the numbers as a small table, with the bound of every coupled block, in a notebook."""
        names = ("method", "objective", "lower_bound", "gap", "relative_gap", "seconds")
        rows = [(name.replace("_", " "), getattr(self, name)) for name in names]
        return piece(type(self).__name__, rows, [("bound of each coupled block", self.block_lower_bound.tolist())])

    def __repr__(self) -> str:
        """Show the numbers, not the tensors."""
        return (
            f"{type(self).__name__}(method={self.method!r}, objective={self.objective:.6g}, "
            f"lower_bound={self.lower_bound:.6g}, relative_gap={self.relative_gap:.3g})"
        )
