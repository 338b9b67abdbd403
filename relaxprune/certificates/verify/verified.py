"""The two outcomes of a verification: what was found, or what failed."""

from __future__ import annotations

from dataclasses import dataclass

from relaxprune.problems import RelaxPruneError


class CertificateError(RelaxPruneError):
    """A certificate does not prove what it says: what failed, in which row, with the numbers."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What verification found of a certificate that holds.

    Attributes:
        method: the certificate's.
        arithmetic: ``"float64"``, or ``"rational"``, in which nothing is rounded.
        objective: of the certificate's mask or weights, recomputed.
        claimed_bound: the certificate's lower bound.
        lower_bound: the sum of the rebuilt bounds of all coupled blocks; the certificate's own is not above it.
        smallest_eigenvalue: the smallest seen while proving convexity, each matrix scaled to a unit diagonal; None if
            no row needed convexity.
        rows_checked: number of rows.
        rows_by_method: how many of them use which method.
    """

    method: str
    arithmetic: str
    objective: float
    claimed_bound: float
    lower_bound: float
    smallest_eigenvalue: float | None
    rows_checked: int
    rows_by_method: dict[str, int]
