"""The driver of bands: shares of the time, sums of what bands cost, and what becomes of one that broke."""

from __future__ import annotations

import time

import pytest
import torch

from relaxprune.problems import MaskProblem
from relaxprune.solvers import Answer, Counts, Driver, Progress, Run, Status
from tests.layers import SHAPE, layer

ROWS = [slice(0, 1), slice(1, 3), slice(3, 6)]


def pieces(problem: MaskProblem) -> list[tuple[slice, MaskProblem]]:
    return [(rows, problem.rows(rows)) for rows in ROWS]


def start_of(problem: MaskProblem) -> torch.Tensor:
    return problem.polytope.round(problem.score("wanda"))


def test_every_band_gets_an_even_share_of_what_is_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    problem, _ = layer("row")
    shares = []

    def solved(band):
        nonlocal now
        shares.append(band.run.deadline - now)
        now += 2.0 if band.number == 0 else 20.0  # the first takes less than it may, the second more
        return Answer(band.run.start)

    Driver("x", Run(start=start_of(problem), deadline=112.0), pieces(problem)).sweep(solved)
    assert shares == [4.0, 5.0, 0.0]


def test_costs_add_up_and_the_worst_status_stays():
    problem, _ = layer("row")
    start = start_of(problem)
    found = [
        Answer(start[:1], status=Status.OPTIMAL, counts=Counts(5, 12.0, 1, 2)),
        Answer(start[1:3], status=Status.TIME_LIMIT, counts=Counts(9, 6.0, 1, 2)),
        Answer(start[3:], status=Status.CONVERGED, counts=Counts(7, 2.0, 1, 2)),
    ]
    answer = Driver("x", Run(start=start), pieces(problem)).sweep(lambda band: found[band.number])
    assert answer.status is Status.TIME_LIMIT
    assert answer.counts == Counts(9, pytest.approx(12 / 6 + 6 * 2 / 6 + 2 * 3 / 6), 3, 6)


@pytest.mark.parametrize("broken", range(3))
def test_a_band_that_broke_down_keeps_what_it_began_with(broken):
    problem, _ = layer("row")
    start = start_of(problem)

    def solved(band):
        found = torch.full(band.problem.shape, 0.25)
        if band.number == broken:
            return Answer(found * torch.nan, status=Status.NOT_FINITE)
        return Answer(found, relaxed=found + 0.5)

    answer = Driver("x", Run(start=start), pieces(problem)).sweep(solved)
    assert answer.status is Status.NOT_FINITE and answer.point.dtype == torch.float32
    for number, rows in enumerate(ROWS):
        expected = start[rows].float() if number == broken else torch.full_like(answer.point[rows], 0.25)
        assert torch.equal(answer.point[rows], expected)
        assert torch.equal(answer.relaxed[rows], expected if number == broken else expected + 0.5)


def test_the_second_sweep_goes_on_from_the_first_and_counts_on():
    problem, _ = layer("row")
    start, other = start_of(problem), problem.polytope.round(problem.score("magnitude"))
    heard: list[Progress] = []
    run = Run(start=start, callback=heard.append)
    driver = Driver("x", run, [(slice(0, 6), problem)], pieces(problem))
    begun = driver.sweep(lambda band: Answer(other, counts=Counts(products=2.0)))
    seen = []

    def solved(band):
        seen.append(band.run.start)
        return Answer(band.run.start, counts=Counts(products=1.0))

    answer = driver.sweep(solved, begun)
    assert torch.equal(torch.cat(seen), other) and torch.equal(answer.point, other)
    assert answer.counts.products == pytest.approx(3.0)
    assert [(item.band, item.bands) for item in heard] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert torch.equal(start, start_of(problem)), "the caller's start was written to"


def test_the_end_of_a_band_is_reported_once():
    problem, _ = layer("row")
    heard: list[Progress] = []

    def solved(band):
        band.report(10, 10.0, 1)
        if band.number:
            band.report(12, 12.0, 0)
        return Answer(band.run.start, counts=Counts(12, 12.0))

    Driver("x", Run(start=start_of(problem), callback=heard.append), pieces(problem)).sweep(solved)
    assert [item.iteration for item in heard] == [10, 12] * 3
    assert [item.active_blocks for item in heard] == [1, 0] * 3


def test_nothing_to_solve_is_the_start():
    problem, _ = layer("row")
    start = start_of(problem)
    answer = Driver("x", Run(start=start), []).sweep(lambda band: pytest.fail("there is no band"))
    assert torch.equal(answer.point, start) and answer.point.shape == SHAPE and answer.counts == Counts()
