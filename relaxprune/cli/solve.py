"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .endings import bad_input, command_line, door, ending, tell, written
from .option_groups import PatternGroup, Seed, SolverGroup, weights_word, with_groups

if TYPE_CHECKING:
    from relaxprune import Certificate, MaskProblem, ReconstructionProblem, Solution
    from relaxprune.options import Target
    from relaxprune.pruning import PruneRequest

_FILE_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MovingGroup:
    """Whether kept weights get new values, and where to write them."""

    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit", help="Give kept weights new values, or leave them; default: the solver's own way."
        ),
    ] = None
    damping: Annotated[
        float | None,
        typer.Option(help="With --refit: what moving a weight costs, of the Gram's mean diagonal; 0.03, alps: 0.01."),
    ] = None
    weight_out: Annotated[
        Path | None, typer.Option("--weight-out", help="If weights move: file for the new weight.")
    ] = None

    @property
    def weights(self) -> str | None:
        """What to do with kept weights, as in ``PruneOptions``."""
        return weights_word(self.refit)

    def check(self, moves: bool) -> None:
        """Refuse options that are for weights that move, if they do not."""
        for name, value in (("--damping", self.damping), ("--weight-out", self.weight_out)):
            if value is not None and not moves:
                raise bad_input(f"{name} is {str(value)!r}, but there is no --refit")


@dataclass(frozen=True)
class ResultGroup:
    """The device to work on, and the file for the result."""

    out: Annotated[Path | None, typer.Option(help="File for the mask, the bound and the settings.")] = None
    device: Annotated[str | None, typer.Option(help="Device to work on, such as cpu or cuda:0.")] = None
    seed: Seed = 0


@dataclass(frozen=True)
class ProofGroup:
    """The certificate: its method, None for the solver's own; its limits; its file."""

    certify: Annotated[
        str | None, typer.Option(help="Prove a bound: fw or diagonal (cheap), sdp (seconds a row), exact (tiny rows).")
    ] = None
    certify_rows: Annotated[int | None, typer.Option(help="Rows to draw for diagonal or sdp; default all.")] = None
    certify_time: Annotated[float | None, typer.Option(help="Seconds for sdp, shared by its rows.")] = None
    certificate: Annotated[
        Path | None, typer.Option(help="File for the proof, the solver's own without --certify; for `verify`.")
    ] = None

    def check(self) -> None:
        """Refuse an unknown method, and limits without one."""
        from relaxprune.certificates.verify.claim import METHODS
        from relaxprune.problems.checks import one_of

        if self.certify is not None:
            one_of("--certify", self.certify, METHODS)
        for name, value in (("--certify-rows", self.certify_rows), ("--certify-time", self.certify_time)):
            if value is not None and self.certify is None:
                raise bad_input(f"{name} is {value}, but there is no --certify")

    def check_for(self, problem: MaskProblem | ReconstructionProblem) -> None:
        """Refuse what is impossible for a problem, before any work."""
        from relaxprune.certificates.limits import check_enumerable, check_limits

        if self.certify is not None:
            check_limits(self.certify, self.certify_rows, self.certify_time)
        if problem.moves_weights and self.certify not in (None, "exact"):
            raise bad_input(f"--certify must be exact with --refit, got {self.certify!r}; leave it out otherwise")
        if self.certify == "exact":
            check_enumerable(problem.mask_problem)

    def of(self, problem: MaskProblem | ReconstructionProblem, solution: Solution, seed: int) -> Certificate:
        """Return the certificate of a solution."""
        from relaxprune import certify, certify_weights

        if self.certify is None:
            return solution.certificate
        if problem.moves_weights:
            assert solution.weight is not None
            return certify_weights(problem, solution.weight, self.certify)
        rows, seconds = self.certify_rows, self.certify_time
        return certify(problem, solution, self.certify, rows=rows, time_limit_s=seconds, seed=seed)


@with_groups
def solve_file(
    file: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    how_much: PatternGroup,
    how: SolverGroup,
    moving: MovingGroup,
    result: ResultGroup,
    proof: ProofGroup,
) -> int:
    """Solve one layer: a file with ``weight`` and ``gram`` gives a mask and a proven bound."""
    from relaxprune.solving import solve

    from .notices import left_out_notices, status_notice

    asked = how.options(result.seed)
    request = _request(how_much, how, moving)
    _check_files({"--out": result.out, "--certificate": proof.certificate, "--weight-out": moving.weight_out})
    proof.check()
    if request.options.moves:
        problem: MaskProblem | ReconstructionProblem = _read_moving(file, request, result.device)
    else:
        problem = read_problem(file, request.target, result.device)
    proof.check_for(problem)
    solution = solve(problem, request.solver, options=asked, throw=False)
    proven = proof.of(problem, solution, result.seed)
    facts = _facts(problem, solution, proven, result.seed)
    _show(facts)
    with ending(lambda: written(proof.certificate, result.out, moving.weight_out)):
        if proof.certificate is not None:
            proven.save(problem, proof.certificate)
            print(f"{'certificate':<15} {proof.certificate}")
        _write(solution, facts, result.out, moving.weight_out)
    notice = status_notice(solution.status)
    return tell([*left_out_notices(solution.solver, request.left_out), *([notice] if notice else [])])


def _request(how_much: PatternGroup, how: SolverGroup, moving: MovingGroup) -> PruneRequest:
    """Return what is asked of one layer, where the solver's name decides what is left open."""
    from relaxprune.options import PruneOptions
    from relaxprune.pruning import PruneRequest

    from .solver_options import parse_options

    name = how.named(bool(moving.refit))
    options = PruneOptions(weights=moving.weights)
    request = PruneRequest.of(how_much.target, name, options, parse_options(name, how.words))
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
    """Read ``weight`` and ``gram`` and make the mask problem."""
    from relaxprune import MaskProblem
    from relaxprune.runs import read_problem_file

    with door():
        layer = read_problem_file(file, device)
    rows, cols = layer.weight.shape
    return MaskProblem(layer.weight, layer.gram, target.polytope_of("weight", (rows, cols)))


def _read_moving(file: Path, request: PruneRequest, device: str | None) -> ReconstructionProblem:
    """Read the same, and ``cross`` and ``dense_gram`` if present, for weights that move."""
    from relaxprune import ReconstructionProblem
    from relaxprune.runs import read_problem_file

    with door():
        layer = read_problem_file(file, device)
    rows, cols = layer.weight.shape
    return ReconstructionProblem(
        layer.weight,
        layer.gram,
        request.target.polytope_of("weight", (rows, cols)),
        cross=layer.cross,
        dense_gram=layer.dense_gram,
        damping=request.options.ridge,
    )


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


def _facts(
    problem: MaskProblem | ReconstructionProblem, solution: Solution, proven: Certificate, seed: int
) -> dict[str, Any]:
    """Return the facts of a solution as plain JSON values."""
    from relaxprune import __version__

    notes = proven.notes
    estimate = notes.get("estimate")  # of drawn rows
    return {
        "schema_version": _FILE_SCHEMA_VERSION,
        "relaxprune": __version__,
        "command": command_line(),
        "polytope": problem.polytope.to_dict(),
        "sparsity": 1.0 - float(solution.mask.double().mean()),
        "objective": solution.objective,
        "kept_objective": solution.kept_objective,
        "dense_energy": problem.reference,
        "damping": problem.damping if problem.moves_weights else None,
        "relative_error": solution.relative_error,
        "relaxed_objective": solution.relaxed_objective,
        "unrounded_objective": solution.unrounded_objective,
        "lower_bound": proven.lower_bound,
        "gap": proven.gap,
        "relative_gap": proven.relative_gap,
        "certificate": proven.method,
        "certified_rows": notes.get("rows_covered"),
        "certificate_seconds": proven.seconds,
        "estimated_bound": None if estimate is None else estimate["lower_bound"],
        "block_objective": solution.block_objective.tolist(),
        "block_lower_bound": proven.block_lower_bound.tolist(),
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
