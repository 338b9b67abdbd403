"""``relaxprune verify``: check a certificate file against the layer that it is for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .endings import door, interruptible, tell
from .option_groups import with_groups


@with_groups
def verify_file(
    problem: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    certificate: Annotated[Path, typer.Argument(help="The certificate; the set of masks is read from it.")],
    exact: Annotated[bool, typer.Option("--exact", help="Compute in rationals: up to 64 rows, 24 columns.")] = False,
) -> int:
    """Check a certificate: rebuild its bound from the layer, by code that had no part in making it."""
    from relaxprune import MaskProblem
    from relaxprune.certificates.certificate_file import load_certificate
    from relaxprune.certificates.verify.verification import CertificateError
    from relaxprune.problems import polytope_from_dict
    from relaxprune.runs import read_problem_file

    with interruptible():
        found, description = load_certificate(certificate)
        with door():
            read = read_problem_file(problem)
        layer = MaskProblem(
            read.weight,
            read.gram,
            polytope_from_dict(description["polytope"]),
            fixed_kept=description["fixed_kept"],
            fixed_pruned=description["fixed_pruned"],
        )
        try:
            seen = found.verify(layer, exact=exact)
        except CertificateError as error:
            return tell([" ".join(f"the certificate does not hold: {error}".split())])
    smallest = "none needed" if seen.smallest_eigenvalue is None else f"{seen.smallest_eigenvalue:.6g}"
    for key, value in {
        "polytope": repr(layer.polytope),
        "method": seen.method,
        "arithmetic": seen.arithmetic,
        "rows_checked": str(seen.rows_checked),
        "rows_by_method": ", ".join(f"{name} {count}" for name, count in seen.rows_by_method.items() if count),
        "objective": f"{seen.objective:.6g}",
        "lower_bound": f"{found.lower_bound:.6g}",
        "rebuilt_bound": f"{seen.lower_bound:.6g}",
        "relative_gap": f"{found.relative_gap:.6g}",
        "smallest_eigenvalue": smallest,
    }.items():
        print(f"{key:<20} {value}")
    return 0
