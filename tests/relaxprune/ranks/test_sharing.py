"""The division of work: complete, the same everywhere, and near the best for jobs of unequal cost."""

from __future__ import annotations

import itertools
import random

import pytest

from relaxprune.ranks.sharing import even_part, longest_first


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_every_job_is_given_once(world: int, seed: int) -> None:
    generator = random.Random(seed)
    costs = [generator.expovariate(1.0) for _ in range(40)]
    given = longest_first(costs, world)
    assert len(given) == world
    assert sorted(itertools.chain(*given)) == list(range(40))
    assert all(jobs == sorted(jobs) for jobs in given)


@pytest.mark.parametrize("world", [2, 3])
def test_the_longest_rank_is_near_the_best(world: int, seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(20):
        costs = [generator.randint(1, 9) for _ in range(7)]
        best = min(
            max(sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(world))
            for owners in itertools.product(range(world), repeat=len(costs))
        )
        found = max(sum(costs[job] for job in jobs) for jobs in longest_first(costs, world))
        assert found <= best * (4 / 3 - 1 / (3 * world)) + 1e-9


def test_equal_jobs_go_round_in_their_order() -> None:
    assert longest_first([1.0] * 5, 2) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(("count", "world"), [(5, 2), (4, 4), (2, 5), (0, 3), (17, 4)])
def test_parts_follow_each_other(count: int, world: int) -> None:
    parts = [even_part(count, rank, world) for rank in range(world)]
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
