"""A set from outside that gives only what it must works with the defaults."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, TransposableNM, solve
from relaxprune.problems import Face, Polytope

from ...random_problems import Draw, make_gram


@dataclass(frozen=True)
class Halves(Polytope):
    """Masks that keep half of every row: only what is abstract, and nothing else."""

    kind: ClassVar[str] = "halves"

    def validate(self, shape: tuple[int, int]) -> None:
        return None

    def kept(self, shape: tuple[int, int]) -> int:
        return shape[0] * (shape[1] // 2)

    def lmo(self, gradient: Tensor) -> Tensor:
        return self.round(-gradient).to(gradient.dtype)

    def round(self, point: Tensor) -> Tensor:
        return KSparse(point.shape[1] // 2).round(point)

    def contains(self, point: Tensor, tolerance: float = 0.0) -> bool:
        return KSparse(point.shape[1] // 2).contains(point, tolerance)

    def with_share(self, share: float) -> Polytope:
        return KSparse(0)


def test_defaults() -> None:
    one = Halves()
    assert one.label == "halves" and Face(one).label == "halves"
    assert one.separable((4, 12)) and not one.counts_columns()
    assert one.loosened().contains(torch.rand(4, 12)) and one.loosened().is_at_most()
    assert one.on_columns(0, 12, (4, 12)) is one
    assert one.on_columns(0, 6, (4, 12)) is None, "nobody says how a stranger's counts are cut"


@pytest.mark.parametrize("solver", ["fw", "swap", "ils", "dicg"])
def test_solvers_take_it_as_they_take_the_same_set_of_ours(solver: str) -> None:
    draw = Draw(3)
    weight, gram = draw.normal(3, 12), make_gram("gaussian", 12, draw)
    budget = {"time_limit_s": 0.2} if solver == "ils" else {}
    solutions = [solve(MaskProblem(weight, gram, one), solver, **budget) for one in (Halves(), KSparse(6))]
    assert torch.equal(solutions[0].mask, solutions[1].mask)


def test_solvers_name_it_where_they_refuse_it() -> None:
    problem = MaskProblem(torch.ones(2, 4), torch.eye(4), Halves())
    with pytest.raises(RelaxPruneError, match="halves set does not have"):
        solve(problem, "fista")


@pytest.mark.parametrize(
    ("polytope", "separable"),
    [
        (KSparse(4), True),
        (KSparse(9, per="layer"), True),
        (KSparse(4, at_most=True), True),
        (NM(2, 4), True),
        (TransposableNM(2, 4), False),
    ],
)
def test_which_sets_are_separable(polytope: Polytope, separable: bool) -> None:
    assert polytope.separable((4, 12)) is separable
    assert Face(polytope, torch.zeros(4, 12, dtype=torch.bool)).separable((4, 12)) is separable


def test_loosened_keeps_what_is_fixed_and_nothing_else() -> None:
    kept, pruned = torch.zeros(2, 8, dtype=torch.bool), torch.zeros(2, 8, dtype=torch.bool)
    kept[0, 1], pruned[1, 2] = True, True
    loose = Face(KSparse(3), kept, pruned).loosened()
    everything, nothing = torch.ones(2, 8), torch.zeros(2, 8)
    assert torch.equal(loose.round(everything), ~pruned) and torch.equal(loose.round(nothing), kept)
    assert torch.equal(loose.room(kept), ~kept & ~pruned)
    assert torch.equal(loose.rows(slice(1, 2)).round(everything[1:]), ~pruned[1:])
    with pytest.raises(RelaxPruneError, match="no count"):
        loose.with_share(0.5)


@pytest.mark.parametrize("keep", range(13))
def test_the_columns_of_a_count_make_up_the_whole(keep: int) -> None:
    shape, cuts = (3, 12), [0, 5, 6, 11, 12]
    for one in (KSparse(keep), KSparse(3 * keep, per="layer")):
        parts = [one.on_columns(start, stop, shape) for start, stop in itertools.pairwise(cuts)]
        assert sum(part.kept((3, 12)) for part in parts) == one.kept(shape)
    assert KSparse(keep, at_most=True).on_columns(0, 5, shape).at_most


def test_groups_are_cut_between_them() -> None:
    for one in (NM(2, 4), TransposableNM(2, 4)):
        assert one.on_columns(4, 12, (4, 12)) == one
        assert one.on_columns(0, 6, (4, 12)) is None and one.on_columns(2, 12, (4, 12)) is None
    face = Face(KSparse(3), torch.zeros(1, 12, dtype=torch.bool))
    assert face.on_columns(0, 12, (1, 12)) is face and face.on_columns(0, 6, (1, 12)) is None
