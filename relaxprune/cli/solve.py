"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    certify: Annotated[str | None, typer.Option(help="Prove a bound by fw, diagonal, sdp or exact.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="File for the proof, for `relaxprune verify`.")] = None,
    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None,
    seed: Seed = 0,
) -> int:
    """Solve one layer: a file with `weight` and `gram` gives a mask and a proven bound."""
    from relaxprune.pruning.outputs import refuse_output_file
    from relaxprune.solving import solve

    from .notices import status_notice
    from .solver_options import parse_options

    target = how_much.target
    options = parse_options(how.solver, how.option)
    for file_out in (out, certificate):
        if file_out is not None:
            refuse_output_file(file_out)
    if certify is not None:
        from relaxprune.certificates.underestimator import check_method

        check_method("--certify", certify)
    with interruptible():
        problem = read_problem(file, target, device)
        solution = solve(
            problem,
            how.solver,
            start=how.start_name,
            polish=how.polish_name,
            max_iterations=how.max_iterations,
            time_limit_s=how.time_limit,
            gap_tolerance=how.gap_tolerance,
            seed=seed,
            throw=False,
            **options,
        )
        proven = solution.certificate if certify is None else _certified(problem, solution, certify, seed)
    facts = _facts(problem, solution, seed)
    for key in ("sparsity", "objective", "relative_error", "lower_bound", "relative_gap", "status", "seconds"):
        print(f"{key:<15} {_text(facts[key])}")
    if certify is not None:
        print(f"{'certified':<15} {_text(proven.lower_bound)} by {certify}, relative gap {_text(proven.relative_gap)}")
    if certificate is not None:
        from relaxprune.certificates.certificate_file import save_certificate

        with door():
            save_certificate(proven, problem.polytope, certificate)
        print(f"{'certificate':<15} {certificate}")
    if out is not None:
        from relaxprune.pruning.mask_file import write_masks

        with door():
            write_masks(out, {"weight": solution.mask}, extra=facts)
        print(f"{'written':<15} {out}")
    notice = status_notice(solution.status)
    return tell([notice] if notice else [])


def _certified(problem: MaskProblem, solution: Solution, method: str, seed: int) -> Certificate:
    """Return the certificate of a solution by the method asked for."""
    from relaxprune import certify

    return certify(problem, solution, method, seed=seed)


def read_problem(file: Path, target: Target, device: str | None) -> MaskProblem:
    """Read ``weight`` and ``gram`` and put the polytope around them."""
    from relaxprune import MaskProblem

    weight, gram = read_layer(file, device)
    rows, cols = weight.shape
    return MaskProblem(weight, gram, target.polytope_of("weight", (rows, cols)))


def _facts(problem: Any, solution: Any, seed: int) -> dict[str, Any]:
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
        "lower_bound": solution.lower_bound,
        "gap": solution.gap,
        "relative_gap": solution.relative_gap,
        "row_objective": solution.row_objective.tolist(),
        "row_lower_bound": None if solution.row_lower_bound is None else solution.row_lower_bound.tolist(),
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
