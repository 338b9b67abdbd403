from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError
from relaxprune.problems import Face, TransposableNM, polytope_from_dict
from tests.random_problems import SETS, Draw, fixed_entries, make_set

from .test_ksparse import best_vertex_value

SEEDS = st.integers(0, 2**31)


@pytest.mark.parametrize("kind", SETS)
@given(seed=SEEDS)
def test_oracle_and_rounding_stay_in_the_face_and_are_exact(kind, seed):
    draw = Draw(seed)
    base, rule = make_set(kind, draw)
    kept, pruned = fixed_entries(rule, draw)
    face, rule = Face(base, kept, pruned), rule.fixing(kept, pruned)
    face.validate(rule.shape)
    cost = draw.normal(*rule.shape)
    vertex = face.lmo(cost)
    assert rule.feasible(vertex.bool()) and face.contains(vertex)
    assert float((cost * vertex).sum()) == pytest.approx(best_vertex_value(rule, cost), abs=1e-12)
    assert rule.feasible(face.round(cost))
    bits = draw.bits(0.5, *rule.shape)
    assert face.contains(bits) == rule.feasible(bits)


@given(seed=SEEDS)
def test_a_selection_of_rows_is_the_face_of_those_rows(seed):
    draw = Draw(seed)
    base, rule = make_set(draw.pick(("row", "row at most", "nm", "nm at most")), draw)
    kept, pruned = fixed_entries(rule, draw)
    face = Face(base, kept, pruned)
    cost = draw.normal(*rule.shape)
    index = torch.arange(rule.shape[0] - 1, -1, -1)
    assert torch.equal(face.rows(index).lmo(cost[index]), face.lmo(cost)[index])
    assert torch.equal(face.rows(slice(0, 1)).round(cost[:1]), face.round(cost)[:1])


@given(seed=SEEDS)
def test_room_is_where_one_more_entry_fits(seed):
    draw = Draw(seed)
    base, rule = make_set(draw.pick(SETS), draw)
    kept, pruned = fixed_entries(rule, draw)
    face, rule = Face(base, kept, pruned), rule.fixing(kept, pruned)
    mask = face.lmo(draw.normal(*rule.shape)).bool()
    room = face.room(mask)
    for row in range(rule.shape[0]):
        for column in range(rule.shape[1]):
            more = mask.clone()
            more[row, column] = True
            assert bool(room[row, column]) == (not mask[row, column] and rule.feasible(more))


def test_what_a_face_says_of_itself():
    kept = torch.zeros(3, 4, dtype=torch.bool)
    kept[0, 0] = True
    face = Face(KSparse(2), kept)
    assert face.kept((3, 4)) == 6 and face.to_dict()["keep"] == 2 and face.to_dict()["fixed_kept"] == 1
    assert face.fixed()[0] is kept and face.fixed()[1] is None
    assert face.at_most_set().is_at_most() and not face.is_at_most()


@pytest.mark.parametrize("base", [KSparse(2), KSparse(5, "layer", at_most=True), NM(1, 2), TransposableNM(1, 2)])
def test_what_a_set_says_of_itself_builds_it_again_unless_entries_are_fixed(base):
    assert polytope_from_dict(json.loads(json.dumps(base.to_dict()))) == base
    face = Face(base, None, torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(RelaxPruneError, match=r"polytope gives fixed_pruned as counts only, .* give the masks to Face"):
        polytope_from_dict(face.to_dict())


def test_a_face_of_a_face_fixes_both(generator):
    """A problem over a Face that fixes more entries: every solver must respect the inner ones too."""
    kept, pruned = torch.zeros(2, 3, 6, dtype=torch.bool)
    kept[:, 0], pruned[:, 1] = True, True
    both = Face(Face(KSparse(2), kept), None, pruned)
    inner_kept, inner_pruned = both.fixed()
    assert inner_kept is not None and torch.equal(inner_kept, kept)
    assert inner_pruned is not None and torch.equal(inner_pruned, pruned)


def problem(**fixed):
    return MaskProblem(torch.ones(2, 4), torch.eye(4), KSparse(2), **fixed)


def cells(*columns: int) -> torch.Tensor:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, list(columns)] = True
    return mask


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: problem(fixed_kept=cells(0, 1, 2)), "fixed_kept and fixed_pruned leave no feasible mask"),
        (lambda: problem(fixed_pruned=cells(0, 1, 2)), "fixed_kept and fixed_pruned leave no feasible mask"),
        (lambda: problem(fixed_kept=cells(0), fixed_pruned=cells(0)), "share entries"),
        (lambda: problem(fixed_kept=cells(0).float()), "fixed_kept must be a bool mask of shape (2, 4)"),
        (lambda: problem(fixed_pruned=cells(0)[:1]), "fixed_pruned must be a bool mask of shape (2, 4)"),
        (lambda: problem(fixed_kept=[[True]]), "fixed_kept must be a bool mask of shape (2, 4)"),
    ],
)
def test_what_cannot_be_right_is_refused_in_one_sentence(make, words):
    with pytest.raises(RelaxPruneError) as refused:
        make()
    assert words in str(refused.value) and "\n" not in str(refused.value)
