"""``relaxprune verify``: check a certificate file against the layer that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import door, tell
from .option_groups import with_groups

if TYPE_CHECKING:
    from relaxprune import MaskProblem, ReconstructionProblem
    from relaxprune.certificates.verify import StoredClaim


@with_groups
def verify_file(
    problem: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    certificate: Annotated[Path, typer.Argument(help="The certificate; the set of masks is read from it.")],
    exact: Annotated[bool, typer.Option("--exact", help="Compute in rationals: up to 64 rows, 24 columns.")] = False,
) -> int:
    """Check a certificate: rebuild its bound from the layer, with code independent of the code that made it."""
    from relaxprune.certificates.verify import CertificateError, read_claim, verify

    stored = read_claim(certificate)
    layer = _problem(problem, stored)
    try:
        seen = verify(layer, stored.claim, exact)
    except CertificateError as error:
        return tell([" ".join(f"the certificate does not hold: {error}".split())])
    subject = stored.subject
    fixed = sum(int(entries.sum()) for entries in (subject.fixed_kept, subject.fixed_pruned) if entries is not None)
    gap = max(0.0, seen.objective - seen.claimed_bound)
    smallest = "none needed" if seen.smallest_eigenvalue is None else f"{seen.smallest_eigenvalue:.6g}"
    for key, value in {
        "polytope": repr(layer.polytope),
        "fixed_entries": str(fixed),
        "damping": None if subject.damping is None else f"{subject.damping:.6g}",
        "method": seen.method,
        "arithmetic": seen.arithmetic,
        "rows_checked": str(seen.rows_checked),
        "rows_by_method": ", ".join(f"{name} {count}" for name, count in seen.rows_by_method.items() if count),
        "objective": f"{seen.objective:.6g}",
        "lower_bound": f"{seen.claimed_bound:.6g}",
        "rebuilt_bound": f"{seen.lower_bound:.6g}",
        "relative_gap": f"{gap / abs(seen.objective) if seen.objective else 0.0:.6g}",
        "smallest_eigenvalue": smallest,
    }.items():
        if value is not None:
            print(f"{key:<20} {value}")
    return 0


def _problem(file: Path, stored: StoredClaim) -> MaskProblem | ReconstructionProblem:
    """Return the problem of a layer's file with the set of masks, and the damping, that a certificate is for."""
    from relaxprune import MaskProblem, ReconstructionProblem
    from relaxprune.problems import Face, polytope_from_dict
    from relaxprune.runs import read_problem_file

    subject = stored.subject
    polytope = polytope_from_dict(subject.polytope)
    if subject.fixed_kept is not None or subject.fixed_pruned is not None:
        polytope = Face(polytope, subject.fixed_kept, subject.fixed_pruned)
    with door():
        read = read_problem_file(file)
    if subject.damping is None:
        return MaskProblem(read.weight, read.gram, polytope)
    moments = {"cross": read.cross, "dense_gram": read.dense_gram}
    return ReconstructionProblem(read.weight, read.gram, polytope, damping=subject.damping, **moments)
