"""solve_files(): many layer files, each a problem of its own, solved by processes of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from relaxprune.options.solve_options import default_solver, solver_of
from relaxprune.options.target import Target
from relaxprune.problems.checks import check_device
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.problems.polytopes import Polytope
from relaxprune.pruning.request import PruneRequest
from relaxprune.runs.fingerprint import plain_values, software_versions
from relaxprune.solvers import Solver
from relaxprune.support.memory import free_bytes
from relaxprune.support.tensor_header import read_header

from .answers import AnswersFolder
from .file_options import FileOptions
from .layer_task import Proof
from .memory import PROCESS_BYTES, solving_bytes
from .one_file import FileJob, FileTask, said
from .outcomes import FAILED, FileOutcome, FilesSummary
from .schedule import Ending, Job, Limits, Schedule

_GIB = 2**30


def solve_files(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    polytope: Polytope | None = None,
    solver: str | Solver | None = None,
    options: FileOptions | None = None,
    on_file: Callable[[FileOutcome], None] | None = None,
    **words: Any,
) -> FilesSummary:
    """Solve many layer files, each by itself, in processes of this machine, and keep the answers in a folder.

    Every answer is the one that ``solve`` gives with as many threads. A file that cannot be solved costs no other one
    its answer. A second call with the same arguments goes on where the first one ended: answers whose files have not
    changed are kept, and so are failures that are the file's own fault.

    The processes import the script that calls this, which must do so under ``if __name__ == "__main__":``.

    Args:
        files: safetensors files with ``weight`` and ``gram``, as ``relaxprune.runs.read_problem_file`` reads them; the
            answer of ``LAYER.safetensors`` is in ``out/layers/LAYER``, so their names must differ.
        out: folder for the answers, new or of an earlier call that asked the same.
        sparsity: fraction to prune in every row. Give exactly one of this, ``pattern`` and ``polytope``.
        pattern: "N:M", keep N of every M consecutive columns.
        polytope: one feasible set for all layers.
        solver: name or instance, as for ``solve``; None is "fw", or "reconstruct" if weights move. A method that is
            known for its weights moves them and counts as published, as in ``prune_model``.
        options: what is asked of every file, and how the processes work; the defaults of ``FileOptions`` if None.
        on_file: called in this process with the outcome of each file as soon as it is known.
        **words: fields of ``FileOptions``, which override ``options``, as in ``solve_files(…, jobs=2)``; and options of
            the solver named.

    Returns:
        What became of every file.

    Raises:
        RelaxPruneError: bad input that concerns all files, before any work: an argument, a file that does not exist, a
            folder that has something else in it or is written to; or no process can be started.
        OSError: the folder cannot be written to.
    """
    started = time.monotonic()
    chosen, own = FileOptions.of(options).updated(words)
    task = _task(Target(sparsity, pattern, polytope), solver, chosen, own)
    named = _by_name(files)
    call = _Call(task, named, AnswersFolder(Path(out)), _limits(chosen, len(named)))
    outcomes: dict[str, FileOutcome] = {}
    with call.folder.opened(_settings(task)), closing(call.outcomes()) as coming:
        for outcome in coming:
            outcomes[outcome.name] = outcome
            if on_file is not None:
                on_file(outcome)
        summary = FilesSummary(
            out=call.folder.path,
            outcomes=tuple(outcomes[name] for name in named),
            seconds=time.monotonic() - started,
            solver=task.request.solver.name,
            left_out=tuple(task.request.left_out),
        )
        call.folder.keep_summary(summary)
    return summary


@dataclass(frozen=True)
class _Call:
    """One call: what is asked, the files by name, the folder of answers, and what the processes may take."""

    task: FileTask
    named: Mapping[str, Path]
    folder: AnswersFolder
    limits: Limits

    def outcomes(self) -> Generator[FileOutcome, None, None]:
        """Yield the outcome of every file: first those that need no process."""
        jobs: list[Job[FileOutcome]] = []
        for name, file in self.named.items():
            found = self._begun(name, file)
            if isinstance(found, Job):
                jobs.append(found)
            else:
                yield found
        with closing(Schedule[FileOutcome](self.limits).run(jobs)) as endings:
            for ending in endings:
                yield self._outcome(ending)

    def _begun(self, name: str, file: Path) -> Job[FileOutcome] | FileOutcome:
        """Return the job of a file, or its outcome if that is known without one."""
        try:
            earlier = self.folder.earlier(name, file)
            return self._job(name, file) if earlier is None else earlier
        except RelaxPruneError as error:
            return self._failed(name, str(error), final=True)
        except OSError as error:
            return self._failed(name, said(error))

    def _job(self, name: str, file: Path) -> Job[FileOutcome] | FileOutcome:
        """Return the job of a file, or its failure if that is known before.

        Raises:
            RelaxPruneError: the file is damaged.
            OSError: it cannot be read.
        """
        header = read_header(file, f"problem file {str(file)!r}")
        needed = solving_bytes(header, self.task.asked, self.task.proof.method)
        most = self.limits.memory_bytes
        if most is not None and needed + PROCESS_BYTES > most:
            gib = (needed + PROCESS_BYTES) / _GIB
            return self._failed(
                name, f"it needs about {gib:.3g} GiB of memory, of {most / _GIB:.3g} GiB that may be used"
            )
        work = FileJob(task=self.task, name=name, file=file, folder=self.folder.layer(name))
        return Job(name=name, call=work, needed_bytes=needed)

    def _outcome(self, ending: Ending[FileOutcome]) -> FileOutcome:
        """Return the outcome of a job that ended."""
        if ending.value is None:
            reason = f"its process {ending.death}, {ending.attempts} times: memory may have run out"
            return replace(self._failed(ending.job.name, reason), attempts=ending.attempts)
        if ending.value.failed:
            self.folder.keep_failure(ending.value)
        return replace(ending.value, attempts=ending.attempts)

    def _failed(self, name: str, reason: str, final: bool = False) -> FileOutcome:
        """Return a failure, and keep it if it is final."""
        outcome = FileOutcome(name=name, file=str(self.named[name]), state=FAILED, reason=reason, final=final)
        self.folder.keep_failure(outcome)
        return outcome


def _task(target: Target, solver: str | Solver | None, options: FileOptions, own: dict[str, Any]) -> FileTask:
    """Return what is asked of every file, checked as far as possible without one."""
    layer, asked = options.layer_options(), options.asked()
    chosen = solver_of(default_solver(layer.moves) if solver is None else solver, own, FileOptions)
    request = PruneRequest.of(target, chosen, layer)
    asked.check_for(chosen)
    asked.check_moves(request.options.moves)
    if options.device is not None:
        chosen.check_device(check_device(options.device))
    proof = Proof(method=options.certify, rows=options.certify_rows, time_limit_s=options.certify_time_s)
    proof.check_moves(request.options.moves)
    return FileTask(request=request, asked=asked, proof=proof, device=options.device)


def _settings(task: FileTask) -> dict[str, Any]:
    """Return what the answers depend on besides their files, as JSON values."""
    request = task.request
    settings = {
        "target": request.target.to_dict(),
        "solver": {"name": request.solver.name, "options": request.solver.options()},
        "weights": request.options.weights,
        "damping": request.options.damping,
        "solve": vars(task.asked),
        "certify": asdict(task.proof),
        "device": task.device,
        "software": software_versions(request.distributions),
    }
    plain: dict[str, Any] = plain_values(settings)
    return plain


def _by_name(files: Sequence[str | Path]) -> dict[str, Path]:
    """Return the files by their names without the last suffix.

    Raises:
        RelaxPruneError: none, one that does not exist, or two of one name.
    """
    if isinstance(files, str | Path) or not files:
        raise RelaxPruneError(f"files must be a sequence of at least one path, got {files!r}")
    named: dict[str, Path] = {}
    for path in map(Path, files):
        if not path.is_file():
            raise RelaxPruneError(f"problem file {str(path)!r} does not exist")
        other = named.setdefault(path.stem, path)
        if other is not path:
            raise RelaxPruneError(
                f"files must have different names, for their answers are named so; got {str(other)!r} and {str(path)!r}"
            )
    return named


def _limits(options: FileOptions, count: int) -> Limits:
    """Return what the processes for so many files may take."""
    jobs = min(options.jobs, count)
    memory = free_bytes() if options.total_memory_bytes is None else options.total_memory_bytes
    threads = max(1, torch.get_num_threads() // jobs)
    return Limits(jobs=jobs, retries=options.retries, memory_bytes=memory, process_bytes=PROCESS_BYTES, threads=threads)
