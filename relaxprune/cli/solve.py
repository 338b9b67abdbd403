"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .endings import bad_input, command_line, door, ending, tell, written
from .option_groups import PatternGroup, SolverGroup, with_groups
from .solve_groups import ManyGroup, MovingGroup, ProofGroup, ResultGroup, Wanted
from .solve_many import solve_many

if TYPE_CHECKING:
    from relaxprune import MaskProblem, Solution
    from relaxprune.options import Target
    from relaxprune.pruning import PruneRequest


@with_groups
def solve_layers(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="file", help="safetensors with `weight` (rows, cols) and `gram` (cols, cols)."),
    ],
    how_much: PatternGroup,
    how: SolverGroup,
    moving: MovingGroup,
    result: ResultGroup,
    proof: ProofGroup,
    many: ManyGroup,
) -> int:
    """Solve one layer: a file with ``weight`` and ``gram`` gives a mask and a proven bound.

    With --jobs, or more than one FILE, every file is a layer of its own, solved in processes, and --out a folder. The
    same command again goes on where it ended: what is solved is not repeated.
    """
    if many.jobs is None and len(files) == 1:
        many.check()
        return _solve_file(files[0], how_much, how, Wanted(moving, result, proof))
    return solve_many(files, how_much, how, Wanted(moving, result, proof), many)


def _solve_file(file: Path, how_much: PatternGroup, how: SolverGroup, wanted: Wanted) -> int:
    """Solve one layer in this process."""
    from relaxprune.layer_files.layer_task import facts_of, problem_of
    from relaxprune.runs import read_problem_file
    from relaxprune.solving import solve

    from .notices import left_out_notices, status_notice

    moving, result, proof = wanted.moving, wanted.result, wanted.proof
    asked = how.options(result.seed)
    request = _request(how_much.target_for(file), how, moving)
    _check_files({"--out": result.out, "--certificate": proof.certificate, "--weight-out": moving.weight_out})
    proof.check()
    with door():
        layer = read_problem_file(file, result.device)
    problem = problem_of(layer, request)
    proof.check_for(problem)
    solution = solve(problem, request.solver, options=asked, throw=False)
    proven = proof.proof.of(problem, solution, result.seed)
    facts = {**facts_of(problem, solution, proven, result.seed), "command": command_line()}
    _show(facts)
    with ending(lambda: written(proof.certificate, result.out, moving.weight_out)):
        if proof.certificate is not None:
            proven.save(problem, proof.certificate)
            print(f"{'certificate':<15} {proof.certificate}")
        _write(solution, facts, result.out, moving.weight_out)
    notice = status_notice(solution.status)
    return tell([*left_out_notices(solution.solver, request.left_out), *([notice] if notice else [])])


def _request(target: Target, how: SolverGroup, moving: MovingGroup) -> PruneRequest:
    """Return what is asked of one layer, where the solver's name decides what is left open."""
    from relaxprune.options import PruneOptions
    from relaxprune.pruning import PruneRequest

    from .solver_options import parse_options

    name = how.named(bool(moving.refit))
    options = PruneOptions(weights=moving.weights)
    request = PruneRequest.of(target, name, options, parse_options(name, how.words))
    moving.check(request.options.moves)
    if moving.damping is None:
        return request
    return replace(request, options=replace(request.options, damping=moving.damping))


def _check_files(files: dict[str, Path | None]) -> None:
    """Refuse outputs that cannot be written, and two that are one file."""
    from relaxprune.support import refuse_output_file

    seen: dict[Path, str] = {}
    for name, path in files.items():
        if path is None:
            continue
        refuse_output_file(path)
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise bad_input(f"{other} and {name} must be two files, got {str(path)!r} for both")


def read_problem(file: Path, target: Target, device: str | None) -> MaskProblem:
    """Read a layer's file and make the problem of its mask."""
    from relaxprune.layer_files.layer_task import mask_problem_of
    from relaxprune.runs import read_problem_file

    with door():
        layer = read_problem_file(file, device)
    return mask_problem_of(layer, target)


def _show(facts: dict[str, Any]) -> None:
    """Print the main numbers."""
    shown = ("sparsity", "objective", "kept_objective", "relative_error", "lower_bound", "relative_gap", "status")
    for key in (*shown, "seconds"):
        if facts[key] is not None:
            print(f"{key:<15} {_text(facts[key])}")
    rows = "" if facts["certified_rows"] is None else f"{facts['certified_rows']} rows, "
    print(f"{'proven by':<15} {facts['certificate']}, {rows}{facts['certificate_seconds']:.3g} s")
    if facts["estimated_bound"] is not None:
        print(f"{'estimated bound':<15} {_text(facts['estimated_bound'])} if all rows were treated; no proof")


def _write(solution: Solution, facts: dict[str, Any], out: Path | None, weight_out: Path | None) -> None:
    """Write the mask with the facts, and the new weight, if asked to."""
    from relaxprune import write_masks
    from relaxprune.support import write_tensors

    if out is not None:
        write_masks(out, {"weight": solution.mask}, extra=facts)
        print(f"{'written':<15} {out}")
    if weight_out is not None and solution.weight is not None:
        write_tensors(weight_out, {"weight": solution.weight})
        print(f"{'new weight':<15} {weight_out}")
    if out is None:
        print(f"{'written':<15} no mask: --out FILE keeps it")


def _text(value: Any) -> str:
    """Return a number with six significant digits, and anything else as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
