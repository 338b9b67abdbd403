"""The one driver of bands of rows under every solver: time, progress, costs, and bands that broke down."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from relaxprune.problems import Problem

from .base import Answer, Counts, Progress, Run, Status, worse

P = TypeVar("P", bound=Problem)
Rows = slice | Tensor  # of a band: a slice, or (R,) indices


@dataclass(kw_only=True)
class Band(Generic[P]):
    """Rows that are solved together, and their budgets.

    Attributes:
        problem: the problem of these rows.
        rows: which rows of the whole they are.
        run: their own run: their start, and a deadline that leaves every other band as much time.
        number: number of the band, from 0.
        count: number of bands.
        solver: name of the solver, for ``report``.
        started: ``time.monotonic()`` when the solver started, for ``report``.
        iteration, products, active_blocks: what ``report`` was told last.
    """

    problem: P
    rows: Rows
    run: Run
    number: int
    count: int
    solver: str
    started: float
    iteration: int = field(default=0, init=False)
    products: float = field(default=0.0, init=False)
    active_blocks: int = field(init=False)
    _told: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Begin with every coupled block active."""
        self.active_blocks = self.problem.polytope.block_count(self.problem.shape)

    def report(self, iteration: int, products: float, active_blocks: int | None = None) -> None:
        """Report the progress of these rows to the caller's callback, if there is one.

        Args:
            iteration: iterations done.
            products: matrix products done, in matrices of this band.
            active_blocks: coupled blocks that have not converged; None for as many as in the last report.
        """
        self.iteration, self.products, self._told = iteration, products, True
        if active_blocks is not None:
            self.active_blocks = active_blocks
        if self.run.callback is not None:
            self.run.callback(
                Progress(
                    solver=self.solver,
                    band=self.number,
                    bands=self.count,
                    iteration=iteration,
                    products=products,
                    active_blocks=self.active_blocks,
                    seconds=time.monotonic() - self.started,
                )
            )

    def close(self, answer: Answer) -> None:
        """Report the end, unless the solver has done so."""
        if not self._told or self.iteration < answer.counts.iterations:
            settled = answer.status in (Status.OPTIMAL, Status.CONVERGED)
            self.report(answer.counts.iterations, answer.counts.products, 0 if settled else None)


class Driver(Generic[P]):
    """Run a solver over the bands of a problem, in one or several sweeps over the rows.

    Every band gets an even share of the time left when it begins. Its answer goes into the whole answer: costs in whole
    matrices, the worst status. A band that broke down keeps what it began with; the others keep their results.

    Args:
        solver: its name.
        run: what the caller asks of all rows.
        *sweeps: the bands of each sweep, as rows and the problem of these rows. Bands of a sweep do not overlap.
    """

    def __init__(self, solver: str, run: Run, *sweeps: Iterable[tuple[Rows, P]]) -> None:
        """Count the bands."""
        self.solver, self.run = solver, run
        self.sweeps = [list(sweep) for sweep in sweeps]
        self.number, self.count = 0, sum(len(sweep) for sweep in self.sweeps)
        self.started = time.monotonic()

    def sweep(self, solve: Callable[[Band[P]], Answer], begun: Answer | None = None) -> Answer:
        """Solve the bands of the next sweep and return the answer of all rows.

        Args:
            solve: solves one band.
            begun: the answer of the sweep before, from which this one begins; None begins at the start of the run.
        """
        bands = self.sweeps.pop(0)
        if begun is None:
            begun = Answer(self.run.start, status=Status.OPTIMAL)  # the best: what the bands end with is no better
        whole, crew = _Whole(begun), self.run.crew
        mine = None if crew is None else crew.shares([problem.shape[0] for _, problem in bands])[crew.rank]
        places: list[tuple[Rows, int]] = []
        told: dict[str, dict[str, Any]] = {}
        bands.reverse()
        while bands:  # what a band has cached goes with it
            rows, problem = bands.pop()
            band = self._band(rows, problem, begun.point[rows])
            if mine is None or len(places) in mine:
                answer = solve(band)
                band.close(answer)
                if mine is None:
                    whole.put(rows, problem.shape[0], answer)
                else:
                    told[str(len(places))] = _told(answer)
            places.append((rows, problem.shape[0]))
        if crew is not None:
            facts = {number: found for rank in crew.exchange(told) for number, found in rank.items()}
            for number, (rows, height) in enumerate(places):
                whole.put(rows, height, _heard(facts[str(number)], begun.point.device))
        return whole.answer()

    def _band(self, rows: Rows, problem: P, start: Tensor) -> Band[P]:
        """Return the next band, with its share of the time."""
        deadline = self.run.deadline
        if deadline is not None:
            now = time.monotonic()
            deadline = now + max(0.0, deadline - now) / (self.count - self.number)
        band = Band(
            problem=problem,
            rows=rows,
            run=replace(self.run, start=start, deadline=deadline),
            number=self.number,
            count=self.count,
            solver=self.solver,
            started=self.started,
        )
        self.number += 1
        return band


def _told(answer: Answer) -> dict[str, Any]:
    """Return everything that a band answers, as a crew exchanges it."""
    own = {"point": answer.point, "relaxed": answer.relaxed, "weight": answer.weight}
    return {**own, "status": answer.status.name, "counts": answer.counts.to_dict()}


def _heard(facts: dict[str, Any], device: torch.device) -> Answer:
    """Undo ``_told``, with tensors on a device."""
    relaxed, weight = (None if facts[name] is None else facts[name].to(device) for name in ("relaxed", "weight"))
    status, counts = Status[facts["status"]], Counts(**facts["counts"])
    return Answer(facts["point"].to(device), relaxed, status, counts, weight=weight)


class _Whole:
    """The growing answer of all rows; the first band that has a tensor decides its dtype."""

    def __init__(self, begun: Answer) -> None:
        self.begun, self.status, self.counts = begun, begun.status, replace(begun.counts)
        self.point: Tensor | None = None
        self.relaxed: Tensor | None = None
        self.weight: Tensor | None = None

    def put(self, rows: Rows, height: int, answer: Answer) -> None:
        """Take in the answer of one band, of ``height`` rows."""
        if not answer.status.failed:
            self.point = self._with(self.point, rows, answer.point)
        if answer.relaxed is not None:
            self.relaxed = self._with(self.relaxed, rows, answer.relaxed)
        if answer.weight is not None:
            self.weight = self._with(self.weight, rows, answer.weight)
        self.counts.add(answer.counts, height / self.begun.point.shape[0])
        self.status = worse(self.status, answer.status)

    def answer(self) -> Answer:
        """Return the answer of all bands together."""
        point = self.begun.point.clone() if self.point is None else self.point
        return Answer(point, self.relaxed, self.status, self.counts, self.begun.tightening, self.weight)

    def _with(self, whole: Tensor | None, rows: Rows, part: Tensor) -> Tensor:
        """Put the rows of a band into a tensor of all rows, whose other rows hold what the sweep began with."""
        if whole is None:
            whole = self.begun.point.to(part.dtype, copy=True)
        whole[rows] = part
        return whole
