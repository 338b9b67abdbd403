"""``relaxprune solve`` of many files: each a layer of its own, solved by processes of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .endings import bad_input, ending, tell
from .option_groups import PatternGroup, SolverGroup
from .solve_groups import ManyGroup, Wanted

if TYPE_CHECKING:
    from relaxprune import FileOptions, FileOutcome, FilesSummary


def solve_many(files: list[Path], how_much: PatternGroup, how: SolverGroup, wanted: Wanted, many: ManyGroup) -> int:
    """Solve every file by itself into one folder; the exit code is 3 where some have no answer."""
    from relaxprune.layer_files import solve_files

    from .solver_options import parse_options

    out = wanted.result.out
    if out is None:
        raise bad_input("--out must name a folder for the answers, new or of an earlier call, got none")
    for name, file in (("--weight-out", wanted.moving.weight_out), ("--certificate", wanted.proof.certificate)):
        if file is not None:
            raise bad_input(f"{name} is {str(file)!r}, but the files of many answers lie in --out; leave it out")
    target = how_much.target
    solver = how.named(bool(wanted.moving.refit))
    own = parse_options(solver, how.words)
    options = _options(how, wanted, many)
    answered: list[str] = []

    def show(outcome: FileOutcome) -> None:
        if not outcome.failed:
            answered.append(outcome.name)
        if outcome.attempts and not outcome.failed:
            print(outcome, flush=True)

    with ending(lambda: f"{len(answered)} answers are in {out}, and the same command goes on"):
        asked: dict[str, Any] = {"sparsity": target.sparsity, "pattern": target.pattern, "solver": solver}
        summary = solve_files(files, out, **asked, options=options, on_file=show, **own)
    print("\n".join([*summary.figures(), f"written to {out}"]))
    return tell(_notices(summary))


def _options(how: SolverGroup, wanted: Wanted, many: ManyGroup) -> FileOptions:
    """Return what is asked of every file, and how the processes work."""
    from relaxprune import FileOptions
    from relaxprune.support.sizes import parse_bytes

    wanted.proof.check()
    return FileOptions(
        **vars(how.options(wanted.result.seed)),
        weights=wanted.moving.weights,
        damping=wanted.moving.damping,
        certify=wanted.proof.certify,
        certify_rows=wanted.proof.certify_rows,
        certify_time_s=wanted.proof.certify_time,
        device=wanted.result.device,
        jobs=FileOptions.jobs if many.jobs is None else many.jobs,
        retries=FileOptions.retries if many.retries is None else many.retries,
        total_memory_bytes=None if many.memory is None else parse_bytes("--memory", many.memory),
    )


def _notices(summary: FilesSummary) -> list[str]:
    """Return what the user must see: reasons, solvers that broke down, parts of a method that were left out."""
    from .notices import left_out_notices, status_notice

    notices = [f"{outcome.name}: {outcome.reason}" for outcome in summary.of("failed")]
    for status, names in summary.broken_down.items():
        notices.append(f"{len(names)} files ended as {status_notice(status)} ({', '.join(names[:3])})")
    return [*notices, *left_out_notices(summary.solver, list(summary.left_out))]
