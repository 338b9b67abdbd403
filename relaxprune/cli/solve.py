"""``relaxprune solve``: a mask and its bound for one layer, handed over in a safetensors file by any codebase."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .endings import bad_input, door, interruptible, tell
from .option_groups import PatternGroup, Seed, SolverGroup, with_groups

if TYPE_CHECKING:
    from relaxprune import Certificate, MaskProblem, ReconstructionProblem, Solution
    from relaxprune.certificates import WeightCertificate
    from relaxprune.options.prune_options import Target

_FILE_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class MovingGroup:
    """Whether kept weights get new values, and where these go."""

    refit: Annotated[bool, typer.Option("--refit", help="Give kept weights new values; see docs/refit.md.")] = False
    damping: Annotated[
        float | None, typer.Option(help="With --refit: what moving a weight costs, of the Gram's mean diagonal; 0.03.")
    ] = None
    weight_out: Annotated[Path | None, typer.Option("--weight-out", help="With --refit: file for the new weight.")] = (
        None
    )

    def check(self) -> None:
        """Refuse what makes no sense without ``--refit``."""
        for name, value in (("--damping", self.damping), ("--weight-out", self.weight_out)):
            if value is not None and not self.refit:
                raise bad_input(f"{name} is {str(value)!r}, but there is no --refit")


@with_groups
def solve_file(
    file: Annotated[Path, typer.Argument(help="safetensors with `weight` (rows, cols) and `gram` (cols, cols).")],
    how_much: PatternGroup,
    how: SolverGroup,
    moving: MovingGroup,
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
    """Solve one layer: a file with ``weight`` and ``gram`` gives a mask and a proven bound."""
    from relaxprune.runs.mask_file import write_masks
    from relaxprune.solving.solving import solve
    from relaxprune.support.container import write_tensors

    from .notices import status_notice
    from .solver_options import parse_options

    target, solver = how_much.target, how.named(moving.refit)
    own, asked = parse_options(solver, how.words), how.options(seed)
    moving.check()
    files = {"--out": out, "--certificate": certificate, "--weight-out": moving.weight_out}
    _check_files({name: path for name, path in files.items() if path is not None})
    proof = _Proof(certify, certify_rows, certify_time, certificate is not None)
    with interruptible():
        problem = read_moving(file, target, device, moving) if moving.refit else read_problem(file, target, device)
        proof.check(problem)
        solution = solve(problem, solver, options=asked, throw=False, **own)
        proven = proof.of(problem, solution, seed)
    facts = _facts(problem, solution, proven, seed)
    shown = ("sparsity", "objective", "kept_objective", "relative_error", "lower_bound", "relative_gap", "status")
    for key in (*shown, "seconds"):
        if facts[key] is not None:
            print(f"{key:<15} {_text(facts[key])}")
    rows = "" if facts["certified_rows"] is None else f"{facts['certified_rows']} rows, "
    print(f"{'proven by':<15} {proven.method}, {rows}{proven.seconds:.3g} s")
    estimate = getattr(proven, "estimate", None)
    if estimate is not None:
        print(f"{'estimated bound':<15} {_text(estimate.lower_bound)} if all rows were treated; no proof")
    if certificate is not None:
        with door():
            proof.save(proven, problem, certificate)
        print(f"{'certificate':<15} {certificate}")
    if out is not None:
        with door():
            write_masks(out, {"weight": solution.mask}, extra=facts)
        print(f"{'written':<15} {out}")
    if moving.weight_out is not None and solution.weight is not None:
        with door():
            write_tensors(moving.weight_out, {"weight": solution.weight})
        print(f"{'new weight':<15} {moving.weight_out}")
    if out is None:
        print(f"{'written':<15} no mask: --out FILE keeps it")
    notice = status_notice(solution.status)
    return tell([notice] if notice else [])


def _check_files(files: dict[str, Path]) -> None:
    """Refuse outputs that cannot be written, and two that are one file."""
    from relaxprune.support.outputs import refuse_output_file

    seen: dict[Path, str] = {}
    for name, path in files.items():
        refuse_output_file(path)
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise bad_input(f"{other} and {name} must be two files, got {str(path)!r} for both")


@dataclass(frozen=True)
class _Proof:
    """What is asked of the certificate: a method, None for the solver's own; its limits; whether to keep it."""

    method: str | None
    rows: int | None
    seconds: float | None
    kept: bool

    def __post_init__(self) -> None:
        from relaxprune.certificates.underestimator import check_method

        if self.method is not None:
            check_method("--certify", self.method)
        for name, value in (("--certify-rows", self.rows), ("--certify-time", self.seconds)):
            if value is not None and self.method is None:
                raise bad_input(f"{name} is {value}, but there is no --certify")

    def check(self, problem: MaskProblem | ReconstructionProblem) -> None:
        """Refuse what cannot be done before any work is."""
        from relaxprune import MaskProblem
        from relaxprune.certificates.certifying import check_enumerable, check_limits

        if self.method is not None:
            check_limits(self.method, self.rows, self.seconds)
        moves = not isinstance(problem, MaskProblem)
        if moves and self.method not in (None, "exact"):
            raise bad_input(f"--certify must be exact with --refit, got {self.method!r}; leave it out otherwise")
        if moves and self.kept:
            raise bad_input("--certificate keeps proofs of masks whose weights stay; leave it out with --refit")
        if self.method == "exact":
            check_enumerable(problem if isinstance(problem, MaskProblem) else problem.mask_problem)

    def of(
        self, problem: MaskProblem | ReconstructionProblem, solution: Solution, seed: int
    ) -> Certificate | WeightCertificate:
        """Return the certificate of a solution."""
        from relaxprune import MaskProblem, certify
        from relaxprune.certificates import certify_weights

        if self.method is None:
            return solution.certificate
        if not isinstance(problem, MaskProblem):
            assert solution.weight is not None
            return certify_weights(problem, solution.weight, self.method)
        return certify(problem, solution, self.method, rows=self.rows, time_limit_s=self.seconds, seed=seed)

    def save(
        self, proven: Certificate | WeightCertificate, problem: MaskProblem | ReconstructionProblem, path: Path
    ) -> None:
        """Write a certificate of a mask problem; there is no other by now."""
        from relaxprune import Certificate, MaskProblem

        assert isinstance(proven, Certificate) and isinstance(problem, MaskProblem)
        proven.save(problem, path)


def read_problem(file: Path, target: Target, device: str | None) -> MaskProblem:
    """Read ``weight`` and ``gram`` and put the polytope around them."""
    from relaxprune import MaskProblem
    from relaxprune.runs.problem_file import read_problem_file

    with door():
        layer = read_problem_file(file, device)
    rows, cols = layer.weight.shape
    return MaskProblem(layer.weight, layer.gram, target.polytope_of("weight", (rows, cols)))


def read_moving(file: Path, target: Target, device: str | None, moving: MovingGroup) -> ReconstructionProblem:
    """Read the same, and ``cross`` and ``dense_gram`` if they are there, for weights that move."""
    from relaxprune import ReconstructionProblem
    from relaxprune.options.prune_options import PruneOptions
    from relaxprune.runs.problem_file import read_problem_file

    with door():
        layer = read_problem_file(file, device)
    rows, cols = layer.weight.shape
    return ReconstructionProblem(
        layer.weight,
        layer.gram,
        target.polytope_of("weight", (rows, cols)),
        cross=layer.cross,
        dense_gram=layer.dense_gram,
        damping=PruneOptions(weights="refit", damping=moving.damping).ridge,
    )


def _facts(problem: Any, solution: Any, proven: Certificate | WeightCertificate, seed: int) -> dict[str, Any]:
    """Return what is known of a solution, as plain JSON values."""
    from relaxprune import __version__

    moves = solution.weight is not None
    return {
        "schema_version": _FILE_SCHEMA_VERSION,
        "relaxprune": __version__,
        "command": shlex.join(["relaxprune", *sys.argv[1:]]),
        "polytope": problem.polytope.to_dict(),
        "sparsity": 1.0 - float(solution.mask.double().mean()),
        "objective": solution.objective,
        "kept_objective": solution.kept_objective,
        "dense_energy": problem.reference if moves else problem.dense_energy,
        "damping": problem.damping if moves else None,
        "relative_error": solution.relative_error,
        "relaxed_objective": solution.relaxed_objective,
        "unrounded_objective": solution.unrounded_objective,
        "lower_bound": proven.lower_bound,
        "gap": proven.gap,
        "relative_gap": proven.relative_gap,
        "certificate": proven.method,
        "certified_rows": getattr(proven, "rows_covered", None),
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
