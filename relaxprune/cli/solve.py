"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from relaxprune.problems.errors import RelaxPruneError

from .endings import door, interruptible, tell
from .option_groups import PatternGroup, Seed, SolverGroup, with_groups
from .problem_file import read_layer

if TYPE_CHECKING:
    from relaxprune import Certificate, MaskProblem, Solution
    from relaxprune.pruning.settings import Target

_FILE_SCHEMA_VERSION = 1


@with_groups
def solve_file(
    file: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    how_much: PatternGroup,
    how: SolverGroup,
    out: Annotated[Path | None, typer.Option(help="File for the mask, the bound and the settings.")] = None,
    certify: Annotated[
        str | None, typer.Option(help="Prove a bound: fw or diagonal (cheap), sdp (seconds a row), exact (tiny rows).")
    ] = None,
    certify_rows: Annotated[int | None, typer.Option(help="Rows to draw for diagonal or sdp; default all.")] = None,
    certify_time: Annotated[float | None, typer.Option(help="Seconds for sdp, shared by its rows.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="File for the proof, the solver's own without --certify; for `verify`.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None,
    seed: Seed = 0,
) -> int:
    """Solve one layer: a file with `weight` and `gram` gives a mask and a proven bound."""
    from relaxprune.pruning.outputs import refuse_output_file
    from relaxprune.solving import solve

    from .notices import status_notice
    from .solver_options import parse_options

    target = how_much.target
    options = parse_options(how.named(), how.words)
    for file_out in (out, certificate):
        if file_out is not None:
            refuse_output_file(file_out)
    if out is not None and certificate is not None and out.resolve() == certificate.resolve():
        raise RelaxPruneError(f"--out and --certificate must be two files, got {str(out)!r} for both")
    proof = _Proof(certify, certify_rows, certify_time)
    with interruptible():
        problem = read_problem(file, target, device)
        proof.check(problem)
        solution = solve(
            problem,
            how.named(),
            start=how.start_name,
            polish=how.polish_name,
            max_iterations=how.max_iterations,
            time_limit_s=how.time_limit,
            gap_tolerance=how.gap_tolerance,
            seed=seed,
            throw=False,
            **options,
        )
        proven = proof.of(problem, solution, seed)
    facts = _facts(problem, solution, proven, seed)
    for key in ("sparsity", "objective", "relative_error", "lower_bound", "relative_gap", "status", "seconds"):
        print(f"{key:<15} {_text(facts[key])}")
    print(f"{'proven by':<15} {proven.method}, {proven.rows_covered} rows, {proven.seconds:.3g} s")
    if proven.estimate is not None:
        print(f"{'estimated bound':<15} {_text(proven.estimate.lower_bound)} if all rows were treated; no proof")
    if certificate is not None:
        with door():
            proven.save(problem, certificate)
        print(f"{'certificate':<15} {certificate}")
    if out is not None:
        from relaxprune.pruning.mask_file import write_masks

        with door():
            write_masks(out, {"weight": solution.mask}, extra=facts)
        print(f"{'written':<15} {out}")
    notice = status_notice(solution.status)
    return tell([notice] if notice else [])


@dataclass(frozen=True)
class _Proof:
    """What is asked of the certificate: a method, None for what the solver proves, and its limits."""

    method: str | None
    rows: int | None
    seconds: float | None

    def __post_init__(self) -> None:
        from relaxprune.certificates.underestimator import check_method

        if self.method is not None:
            check_method("--certify", self.method)
        for name, value in (("--certify-rows", self.rows), ("--certify-time", self.seconds)):
            if value is not None and self.method is None:
                raise RelaxPruneError(f"{name} is {value}, but there is no --certify")

    def check(self, problem: MaskProblem) -> None:
        """Refuse what cannot be done before any work is."""
        from relaxprune.certificates.certifying import check_enumerable, check_limits

        if self.method is not None:
            check_limits(self.method, self.rows, self.seconds)
        if self.method == "exact":
            check_enumerable(problem)

    def of(self, problem: MaskProblem, solution: Solution, seed: int) -> Certificate:
        """Return the certificate of a solution."""
        from relaxprune import certify

        if self.method is None:
            return solution.mask_certificate
        return certify(problem, solution, self.method, rows=self.rows, time_limit_s=self.seconds, seed=seed)


def read_problem(file: Path, target: Target, device: str | None) -> MaskProblem:
    """Read ``weight`` and ``gram`` and put the polytope around them."""
    from relaxprune import MaskProblem

    weight, gram = read_layer(file, device)
    rows, cols = weight.shape
    return MaskProblem(weight, gram, target.polytope_of("weight", (rows, cols)))


def _facts(problem: Any, solution: Any, proven: Certificate, seed: int) -> dict[str, Any]:
    """Return what is known of a solution, as plain JSON values."""
    from relaxprune import __version__

    return {
        "schema_version": _FILE_SCHEMA_VERSION,
        "relaxprune": __version__,
        "command": shlex.join(["relaxprune", *sys.argv[1:]]),
        "polytope": problem.polytope.to_dict(),
        "sparsity": 1.0 - float(solution.mask.double().mean()),
        "objective": solution.objective,
        "dense_energy": problem.dense_energy,
        "relative_error": solution.relative_error,
        "relaxed_objective": solution.relaxed_objective,
        "unrounded_objective": solution.unrounded_objective,
        "lower_bound": proven.lower_bound,
        "gap": proven.gap,
        "relative_gap": proven.relative_gap,
        "certificate": proven.method,
        "certified_rows": proven.rows_covered,
        "row_objective": solution.row_objective.tolist(),
        "row_lower_bound": proven.row_lower_bound.tolist(),
        "status": solution.status.name,
        "advice": solution.status.value,
        "solver": solution.solver,
        "options": solution.options,
        "seed": seed,
        "seconds": solution.stats.seconds,
        "stats": solution.stats.to_dict(),
    }


def _text(value: Any) -> str:
    """Return a number with six significant digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
