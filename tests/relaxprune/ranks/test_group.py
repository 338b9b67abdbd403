"""Processes that talk: sums in the order of the ranks, exchanges, and agreement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from relaxprune.problems import RelaxPruneError
from relaxprune.ranks import ALONE, joined
from relaxprune.ranks import group as groups

from ..forks import forked, told


def part(rank: int) -> list[Tensor]:
    """Numbers of very different size, so that the order of a sum shows in its last bits."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randn(shape, dtype=torch.float64, generator=generator) * 10.0 ** (3 * rank) for shape in ((9, 9), (1,))
    ]


@pytest.mark.parametrize("piece", [2**23, 7])
def test_sums_are_in_the_order_of_the_ranks(piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_PIECE", piece)

    def work(rank: int) -> object:
        with joined() as ranks:
            own = part(rank)
            ranks.all_sum_(*own)
            return own

    found = told(4, work, tmp_path)
    wanted = part(0)
    for rank in (1, 2, 3):
        for total, other in zip(wanted, part(rank), strict=True):
            total += other
    assert all(torch.equal(one, other) for rank in found for one, other in zip(rank, wanted, strict=True))


def test_all_hear_what_each_tells(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        with joined() as ranks:
            heard = ranks.exchange({"rank": rank, "mask": torch.arange(rank * 5) > 3, "text": "é" * rank})
            made = ranks.from_leader(lambda: {"of": rank, "sizes": (1, 2)})
            return heard, made, ranks.broadcast(torch.tensor([rank])), (ranks.rank, ranks.world, ranks.leader)

    for rank, (heard, made, sent, who) in enumerate(told(3, work, tmp_path)):
        assert [one["rank"] for one in heard] == [0, 1, 2] and [one["text"] for one in heard] == ["", "é", "éé"]
        assert [one["mask"].tolist() for one in heard] == [(torch.arange(n * 5) > 3).tolist() for n in range(3)]
        assert made == {"of": 0, "sizes": [1, 2]} and sent.tolist() == [0]
        assert who == [rank, 3, rank == 0]


def test_ranks_that_differ_are_named(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        try:
            with joined() as ranks:
                ranks.agree({"text": 1, "seed": 1})
                ranks.agree({"text": 1, "seed": rank // 2, "model": rank // 2})
        except RelaxPruneError as error:
            return [str(error), ranks.silent]
        return None

    sentence = "all 3 ranks must have the same seed and model, got another on rank 2 than on rank 0"
    assert told(3, work, tmp_path) == [[sentence, False], [sentence, True], [sentence, True]]


def test_a_process_group_that_is_there_is_left_alone(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        dist.init_process_group("gloo")
        with joined() as ranks:
            heard = ranks.exchange(rank)
        total = torch.ones(1)
        dist.all_reduce(total)
        return [heard, float(total)]

    assert told(2, work, tmp_path) == [[[0, 1], 2.0]] * 2


def test_a_process_group_that_sends_nothing_on_cpus_is_no_obstacle(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        dist.Backend.register_backend("deaf", lambda *_arguments: dist.ProcessGroup(rank, 2), devices=["cpu"])
        dist.init_process_group("deaf")
        with joined() as ranks:
            return ranks.exchange(rank)

    assert told(2, work, tmp_path) == [[0, 1]] * 2


def test_what_cannot_be_sent_is_no_lost_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_words: object) -> None:
        raise RuntimeError("No backend type associated with device type cpu")

    def work(_rank: int) -> object:
        with pytest.raises(RuntimeError, match=r"^No backend type associated"), joined() as ranks:
            monkeypatch.setattr(dist, "all_gather", refuse)
            ranks.exchange(1)
        return None

    assert told(2, work, tmp_path) == [None, None]


def test_ranks_may_join_again(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        heard = []
        for number in range(3):
            with joined() as ranks:
                heard.append(ranks.exchange(10 * number + rank))
        return heard

    assert told(2, work, tmp_path) == [[[0, 1], [10, 11], [20, 21]]] * 2


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined() as ranks:
        assert ranks is ALONE
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as ranks:
        assert ranks is ALONE
    assert ranks.leader and ranks.exchange("a") == ["a"] and ranks.from_leader(lambda: 3) == 3
    assert ranks.shares([1.0, 2.0]) == [[0, 1]]
    ranks.agree({"a": object()})
    ranks.check()


def test_variables_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> object:
        del os.environ["MASTER_ADDR"]
        with (
            pytest.raises(RelaxPruneError, match=r"a launcher must set RANK, WORLD_SIZE, .* got no MASTER_ADDR"),
            joined(),
        ):
            pass
        return None

    assert [rank.code for rank in forked(2, work, tmp_path)] == [0, 0]
