"""``relaxprune verify``: a certificate file against the layer that it is for, or a run against its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .endings import bad_input, door, tell
from .option_groups import with_groups

if TYPE_CHECKING:
    from relaxprune import MaskProblem, ReconstructionProblem
    from relaxprune.certificates.verify import StoredClaim
    from relaxprune.problems import Polytope


@with_groups
def verify_file(
    problem: Annotated[
        Path,
        typer.Argument(metavar="PROBLEM|RUN", help="Run folder, or safetensors with `weight` and `gram` of a layer."),
    ],
    certificate: Annotated[
        Path | None, typer.Argument(help="A layer's certificate; the set of masks is read from it.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compute in rationals: up to 64 rows, 24 columns.")] = False,
    source: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Of a run: what was pruned, if it is not where it was.")
    ] = None,
    cache_dir: Annotated[Path | None, typer.Option(help="Of a run: folder for downloaded models.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Of a run: run Python code that comes with the model (off).")
    ] = False,
    offload: Annotated[
        str | None, typer.Option(help="Of a run: disk, to hold one block of each model at a time.")
    ] = None,
) -> int:
    """Check a certificate by code that had no part in making it, or a run folder against the model that was pruned."""
    if certificate is None:
        if exact:
            raise bad_input("--exact is given, but there is no certificate")
        return _verify_run(problem, source, cache_dir, trust_remote_code, offload)
    if source is not None or cache_dir is not None or trust_remote_code or offload is not None:
        raise bad_input(
            "--source, --cache-dir, --trust-remote-code and --offload are for a run folder, got a certificate"
        )
    return _verify_certificate(problem, certificate, exact)


def _verify_certificate(problem: Path, certificate: Path, exact: bool) -> int:
    """Rebuild a certificate's bound from its layer; the exit code is 3 where it does not hold."""
    from relaxprune.certificates.verify import CertificateError, read_claim, verify

    with door():
        stored = read_claim(certificate)
    try:
        layer = _problem(problem, stored)
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
    from relaxprune.runs import read_problem_file

    subject = stored.subject
    with door():
        read = read_problem_file(file)
    polytope = _polytope(stored, (read.weight.shape[0], read.weight.shape[1]))
    if subject.damping is None:
        return MaskProblem(read.weight, read.objective(), polytope)
    moments = {"cross": read.cross, "dense_gram": read.dense_gram}
    return ReconstructionProblem(read.weight, read.gram, polytope, damping=subject.damping, **moments)


def _polytope(stored: StoredClaim, shape: tuple[int, int]) -> Polytope:
    """Return the set of masks that a certificate is for.

    Raises:
        CertificateError: there is no such set, or none of masks of this ``shape``, that of the layer.
    """
    from relaxprune import RelaxPruneError
    from relaxprune.certificates.verify import CertificateError
    from relaxprune.problems import Face, polytope_from_dict

    subject = stored.subject
    try:
        polytope = polytope_from_dict(subject.polytope)
        if subject.fixed_kept is not None or subject.fixed_pruned is not None:
            polytope = Face(polytope, subject.fixed_kept, subject.fixed_pruned)
        polytope.validate(shape)
    except RelaxPruneError as error:
        raise CertificateError(f"its set of masks is none of this layer's: {error}") from error
    return polytope


def _verify_run(
    folder: Path, source: str | None, cache_dir: Path | None, trust_remote_code: bool, offload: str | None
) -> int:
    """Compare a run with its source; the exit code is 3 where anything differs."""
    from transformers.utils import logging

    from relaxprune.runs.verification import verify_run

    logging.disable_progress_bar()
    with door():
        cache = None if cache_dir is None else str(cache_dir)
        found = verify_run(folder, source, cache_dir=cache, trust_remote_code=trust_remote_code, offload=offload)
    if found.differences:
        return tell([str(found)])
    print(found)
    return 0
