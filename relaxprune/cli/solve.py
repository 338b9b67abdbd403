"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .endings import door, interruptible, tell
from .option_groups import PatternGroup, Seed, SolverGroup, with_groups

if TYPE_CHECKING:
    from relaxprune import MaskProblem
    from relaxprune.pruning.settings import Target

_FILE_SCHEMA_VERSION = 1


@with_groups
def solve_file(
    file: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    how_much: PatternGroup,
    how: SolverGroup,
    out: Annotated[Path | None, typer.Option(help="File for the mask, the bound and the settings.")] = None,
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
    if out is not None:
        refuse_output_file(out)
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
    facts = _facts(problem, solution, seed)
    for key in ("sparsity", "objective", "relative_error", "lower_bound", "relative_gap", "status", "seconds"):
        print(f"{key:<15} {_text(facts[key])}")
    if out is not None:
        from relaxprune.pruning.mask_file import write_masks

        with door():
            write_masks(out, {"weight": solution.mask}, extra=facts)
        print(f"{'written':<15} {out}")
    notice = status_notice(solution.status)
    return tell([notice] if notice else [])


def read_problem(file: Path, target: Target, device: str | None) -> MaskProblem:
    """Read ``weight`` and ``gram`` and put the polytope around them."""
    from safetensors import SafetensorError, safe_open

    from relaxprune import MaskProblem, RelaxPruneError
    from relaxprune.checks import check_device

    place = check_device(device or "cpu")
    if not file.is_file():
        raise RelaxPruneError(f"problem file {str(file)!r} does not exist")
    try:
        with door(), safe_open(file, framework="pt") as tensors:
            missing = sorted({"weight", "gram"} - set(tensors.keys()))
            if missing:
                raise RelaxPruneError(f"problem file {str(file)!r} has no tensor {missing[0]!r}")
            weight, gram = tensors.get_tensor("weight").to(place), tensors.get_tensor("gram").to(place)
    except SafetensorError as error:
        raise RelaxPruneError(f"problem file {str(file)!r} is not a whole safetensors file: {error}") from error
    if weight.ndim != 2:
        raise RelaxPruneError(f"`weight` in {str(file)!r} must have 2 dimensions, got shape {tuple(weight.shape)}")
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
