"""What a worker process does with one layer file: read, solve, prove, write."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

from relaxprune.options.solve_options import SolveOptions
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.pruning.request import PruneRequest
from relaxprune.runs.mask_file import write_masks
from relaxprune.runs.problem_file import read_problem_file
from relaxprune.solving.solving import solve
from relaxprune.support.container import write_tensors
from relaxprune.support.sentences import first_line

from .answers import CERTIFICATE, MASKS, WEIGHT, clear, write_record
from .layer_task import Proof, facts_of, problem_of
from .outcomes import FAILED, SOLVED, FileOutcome

_NUMBERS = ("threads", "status", "sparsity", "objective", "relative_error", "lower_bound", "relative_gap")


@dataclass(frozen=True, kw_only=True)
class FileTask:
    """What is asked of every file.

    Attributes:
        request: how much to prune, by which solver, and whether weights move.
        asked: what is asked of the solve.
        proof: the certificate.
        device: where to compute, None for the CPU.
    """

    request: PruneRequest
    asked: SolveOptions
    proof: Proof
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class FileJob:
    """One file for a worker process; it is called there.

    Attributes:
        task: what is asked.
        name: of the file.
        file: its path.
        folder: of its answer.
    """

    task: FileTask
    name: str
    file: Path
    folder: Path

    def __call__(self) -> FileOutcome:
        """Solve the file and write the answer; an error becomes a failure with its reason."""
        started = time.monotonic()
        failed = FileOutcome(name=self.name, file=str(self.file), state=FAILED)
        try:
            outcome = self._solved(started)
            write_record(self.folder, self.file, outcome)
            return outcome
        except RelaxPruneError as error:
            failed = replace(failed, reason=" ".join(str(error).split()), final=True)
        except (OSError, MemoryError) as error:
            failed = replace(failed, reason=said(error))
        except Exception as error:
            failed = replace(failed, reason=said(error), traceback=traceback.format_exc())
        return replace(failed, seconds=time.monotonic() - started)

    def _solved(self, started: float) -> FileOutcome:
        """Write the answer's files and return its numbers."""
        task = self.task
        clear(self.folder)
        problem = problem_of(read_problem_file(self.file, task.device), task.request)
        task.proof.check_for(problem)
        solution = solve(problem, task.request.solver, options=task.asked, throw=False)
        proven = task.proof.of(problem, solution, task.asked.seed)
        facts = facts_of(problem, solution, proven, task.asked.seed)
        write_masks(self.folder / MASKS, {"weight": solution.mask}, extra=facts)
        if solution.weight is not None:
            write_tensors(self.folder / WEIGHT, {"weight": solution.weight})
        if task.proof.method is not None:
            proven.save(problem, self.folder / CERTIFICATE)
        return FileOutcome(
            name=self.name,
            file=str(self.file),
            state=SOLVED,
            seconds=time.monotonic() - started,
            **{name: facts[name] for name in _NUMBERS},
        )


def said(error: Exception) -> str:
    """Return an error that is no bad input in one sentence."""
    return f"{type(error).__name__}: {first_line(error)}"
