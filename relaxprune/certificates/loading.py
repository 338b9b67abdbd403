"""Reading certificates from disk as certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relaxprune.problems import RelaxPruneError

from .certificate import Certificate
from .choice_certificate import ChoiceCertificate
from .mask_certificate import Estimate, MaskCertificate
from .verify import StoredClaim, read_claim
from .verify.claim import ChoiceClaim, MaskClaim, WeightClaim
from .weight_certificate import WeightCertificate


def load_certificate(path: str | Path) -> Certificate:
    """Read a certificate file. Its content is not trusted until ``Certificate.verify`` has checked it.

    Args:
        path: a file that ``Certificate.save`` made.

    Returns:
        The certificate, on the CPU: a ``MaskCertificate`` or a ``WeightCertificate``.

    Raises:
        RelaxPruneError: there is no such file, it is no certificate, of another version, damaged, or incomplete.
    """
    stored = read_claim(path)
    try:
        return _certificate(stored)
    except (KeyError, TypeError) as error:
        raise RelaxPruneError(f"certificate file {str(path)!r} has a description that is not whole: {error}") from error


def _certificate(stored: StoredClaim) -> Certificate:
    """Return the certificate of a claim, with the numbers that the proof does not depend on."""
    claim, notes = stored.claim, stored.description
    if isinstance(claim, WeightClaim):
        own = _numbers(claim, notes, stored.subject)
        return WeightCertificate(**own, weight=claim.weight, point=claim.point, tightening=claim.tightening)
    if isinstance(claim, ChoiceClaim):
        apart = _of_masks(claim.apart, notes["apart"])
        own = _numbers(claim, notes, stored.subject)
        inherited = {name: getattr(apart, name) for name in ("rows_covered", "checks", "relaxed_objective", "proof")}
        return ChoiceCertificate(**own, **inherited, mask=claim.mask, apart=apart)
    assert isinstance(claim, MaskClaim)
    return _of_masks(claim, notes)


def _numbers(claim: WeightClaim | ChoiceClaim | MaskClaim, notes: dict[str, Any], subject: object) -> dict[str, Any]:
    """Return what certificates of every kind have."""
    names = ("method", "objective", "lower_bound", "block_objective", "block_lower_bound")
    return {**{name: getattr(claim, name) for name in names}, "seconds": notes["seconds"], "subject": subject}


def _of_masks(claim: MaskClaim, notes: dict[str, Any]) -> MaskCertificate:
    """Return a certificate of masks with its numbers."""
    estimate = notes["estimate"]
    return MaskCertificate(
        **_numbers(claim, notes, claim.subject),
        rows_covered=claim.rows_covered,
        checks=notes["checks"],
        relaxed_objective=notes["relaxed_objective"],
        mask=claim.mask,
        proof=claim.proof,
        estimate=None if estimate is None else Estimate(**estimate),
    )
