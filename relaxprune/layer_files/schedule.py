"""Jobs on worker processes: the largest first, each begun only where its memory fits, and again if its process died."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from relaxprune.problems.errors import RelaxPruneError

from .workers import Worker

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What all processes together may take.

    Attributes:
        jobs: how many work at the same time.
        retries: how often a job is tried again whose process died.
        memory_bytes: of all of them; None if nobody knows.
        process_bytes: that each process takes before it has a job.
        threads: of each process.
    """

    jobs: int
    retries: int
    memory_bytes: int | None
    process_bytes: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Job(Generic[T]):
    """One call for a process.

    Attributes:
        name: of the job.
        call: what is done; it can be sent to another process.
        needed_bytes: that it takes beside the process's own.
    """

    name: str
    call: Callable[[], T]
    needed_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Ending(Generic[T]):
    """How a job ended.

    Attributes:
        job: the job.
        value: what its call returned, None where every process died.
        death: how the last process ended, None where there is a value.
        attempts: how many processes have tried.
    """

    job: Job[T]
    value: T | None = None
    death: str | None = None
    attempts: int = 1


@dataclass(eq=False)
class _Try(Generic[T]):
    """A job that waits or is under way."""

    job: Job[T]
    attempts: int = 0


@dataclass(eq=False)
class Schedule(Generic[T]):
    """The jobs that wait, those under way with their processes, and the processes without a job."""

    limits: Limits
    waiting: list[_Try[T]] = field(default_factory=list, init=False)
    running: dict[Future[T], tuple[_Try[T], Worker]] = field(default_factory=dict, init=False)
    idle: list[Worker] = field(default_factory=list, init=False)
    any_began: bool = field(default=False, init=False)

    def run(self, jobs: Sequence[Job[T]]) -> Generator[Ending[T], None, None]:
        """Do the jobs, and yield how each ended as soon as it has; every job's memory must fit alone.

        Where this is left early, by an exception or because nobody asks for the next, all processes are killed.

        Raises:
            RelaxPruneError: no process can be started.
        """
        self.waiting = [_Try(job) for job in sorted(jobs, key=lambda job: -job.needed_bytes)]
        try:
            while self.waiting or self.running:
                self._begin_what_fits()
                for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                    ending = self._ended(future)
                    if ending is not None:
                        yield ending
            for worker in self.idle:
                worker.stop()
        except BaseException:
            for worker in [*self.idle, *(worker for _, worker in self.running.values())]:
                worker.kill()
            raise

    def _begin_what_fits(self) -> None:
        """Give jobs to processes, as many as may work."""
        for waiting in list(self.waiting):
            if len(self.running) == self.limits.jobs:
                return
            if not self._fits(waiting):
                continue
            self.waiting.remove(waiting)
            waiting.attempts += 1
            future, worker = self._submitted(waiting.job.call)
            self.running[future] = waiting, worker

    def _submitted(self, call: Callable[[], T]) -> tuple[Future[T], Worker]:
        """Give a call to a process that has none, or to a new one."""
        while self.idle:
            worker = self.idle.pop()
            with suppress(BrokenProcessPool):  # it died without a call
                return worker.submit(call), worker
        worker = Worker(self.limits.threads)
        return worker.submit(call), worker

    def _fits(self, waiting: _Try[T]) -> bool:
        """Tell whether a job may begin beside those under way; after a death it is to be alone."""
        if not self.running:
            return True
        others = [other for other, _ in self.running.values()]
        if waiting.attempts or any(other.attempts > 1 for other in others):
            return False
        if self.limits.memory_bytes is None:
            return True
        processes = len(self.running) + max(1, len(self.idle))
        taken = processes * self.limits.process_bytes + sum(one.job.needed_bytes for one in [waiting, *others])
        return taken <= self.limits.memory_bytes

    def _ended(self, future: Future[T]) -> Ending[T] | None:
        """Return how a job ended, None if it is to be tried again."""
        tried, worker = self.running.pop(future)
        try:
            value = future.result()
        except BrokenProcessPool:
            return self._died(tried, worker)
        except BaseException:
            worker.kill()
            raise
        self.any_began = True
        self.idle.append(worker)
        return Ending(job=tried.job, value=value, attempts=tried.attempts)

    def _died(self, tried: _Try[T], worker: Worker) -> Ending[T] | None:
        """Return how a job ended whose process died, None if it is to be tried again."""
        death = worker.death()
        self.any_began = self.any_began or worker.began
        if not self.any_began:
            raise RelaxPruneError(
                f"a new process {death} before it could work; a script that calls solve_files must do so under "
                '`if __name__ == "__main__":`, because its processes import the script'
            )
        if tried.attempts > self.limits.retries:
            return Ending(job=tried.job, death=death, attempts=tried.attempts)
        self.waiting.append(tried)
        return None
