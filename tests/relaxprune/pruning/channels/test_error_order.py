"""Orders of columns searched by the error of short solves: against all orders and masks, and in whole runs."""

from __future__ import annotations

import copy
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from relaxprune.models.layers import apply_masks
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems import NM, RelaxPruneError
from relaxprune.pruning.channels import error_order
from relaxprune.pruning.channels.channel_order import gains_by_groups, gains_by_rows
from relaxprune.pruning.channels.channel_paths import ChannelPath, Orbit
from relaxprune.pruning.channels.error_order import LayerInOrders, OrdersTried
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.request import PruneRequest
from tests.conftest import LONG

from ...recorders import BlockMemory
from ...tiny_models import padded_batches, tiny_model

MOVED = ("*down_proj", "*o_proj")
BY_ERROR = PruneOptions(permute=True, permute_by="error", include=MOVED)
WORDS = {"pattern": "2:4", "solver": "fw", "effort": "fast"}
HALVES = [part for part in combinations(range(8), 4) if 0 in part]  # one half of each of the 35 partitions


def whole(cols, slots=1):
    """A path on which all columns may change places; those of ``slots`` heads together."""
    size = cols // slots
    return ChannelPath((0,), size, (Orbit(torch.arange(size), torch.arange(cols).view(slots, size)),))


def layer(rows, cols, seed, pattern, damping=None):
    """Random weights, and inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    inputs = torch.randn(4 * cols, cols, generator=generator) @ torch.randn(cols, cols, generator=generator)
    return LayerInOrders(weight, inputs.T @ inputs / len(inputs), pattern, damping)


def least_error(tiny, half):
    """The relative error of the best 2:4 mask if ``half`` of eight columns are the first group, in float64."""
    weight, gram = tiny.weight.double(), tiny.gram.double()
    groups = half, tuple(column for column in range(8) if column not in half)
    pruned = [(*one, *other) for one, other in product(*(combinations(group, 2) for group in groups))]
    least = torch.full((len(weight),), torch.inf, dtype=torch.float64)
    for some in pruned:
        index = torch.tensor(some)
        part = weight[:, index]
        least = torch.minimum(least, torch.einsum("ri,ij,rj->r", part, gram[index][:, index], part))
    return float(least.sum() / torch.einsum("ri,ij,rj->", weight, gram, weight))


@pytest.mark.parametrize("seed", range(20 if LONG else 2))
def test_near_the_best_of_all_orders_and_masks(seed):
    """Eight columns in groups of four: 35 orders that differ, 36 masks of a row in each."""
    tiny = layer(6, 8, seed, NM(2, 4))
    errors = {half: least_error(tiny, half) for half in HALVES}
    tried = OrdersTried.of(tiny, whole(8), 0)
    half = tuple(sorted(tried.best.columns()[:4].tolist()))
    found = errors[half] if half in errors else errors[tuple(sorted(set(range(8)) - set(half)))]
    source, best = errors[0, 1, 2, 3], min(errors.values())
    assert best <= found <= source + 1e-9
    assert found - best <= 0.1 * (source - best)
    assert tried.errors[0] >= source - 1e-6 and min(tried.errors) >= found - 1e-6  # what short solves can reach


@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    group=st.integers(2, 5),
    slots=st.integers(1, 2),
    data=st.data(),
    moves=st.booleans(),
)
@settings(max_examples=100 if LONG else 3, deadline=None)
def test_never_above_the_order_of_the_source(rows, groups, group, slots, data, moves):
    keep = data.draw(st.integers(1, group - 1))
    seed = data.draw(st.integers(0, 999))
    cols = 2 * groups * group * slots
    tiny = layer(rows, cols, seed, NM(keep, group), 0.03 if moves else None)
    tried = OrdersTried.of(tiny, whole(cols, slots), seed)
    columns, source = tried.best.columns(), torch.arange(cols)
    assert torch.equal(columns.sort().values, source)
    assert tried.errors[0] == tiny.solve(source)[0]
    assert tiny.solve(columns)[0] == min(tried.errors) <= tried.errors[0]
    within = columns.view(slots, -1) - torch.arange(slots).unsqueeze(1) * (cols // slots)
    assert (within == tried.best.rows()).all()


def test_a_cost_is_what_pruning_a_weight_alone_adds():
    """The costs at a mask, computed at once in float32, are the differences of the objective in float64."""
    tiny = layer(3, 8, 0, NM(2, 4))
    mask = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < 0.5

    def objective(kept):
        lost = tiny.weight.double().masked_fill(kept, 0.0)
        return float(torch.einsum("ri,ij,rj->", lost, tiny.gram.double(), lost))

    costs = tiny._marginal(mask)
    for row, column in product(range(3), range(8)):
        with_it, without = mask.clone(), mask.clone()
        with_it[row, column], without[row, column] = True, False
        expected = objective(without) - objective(with_it)
        assert float(costs[row, column]) == pytest.approx(expected, rel=1e-4, abs=1e-4 * objective(mask))


def test_both_ways_of_summing_gains_agree():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(7, 24, generator=generator)
    taken, others = torch.arange(0, 24, 4), torch.arange(24).view(6, 4)[:, 1:].contiguous()
    assert torch.allclose(gains_by_rows(scores, 2, taken, others), gains_by_groups(scores, 2, taken, others))


def test_an_order_that_was_tried_is_not_solved_again(monkeypatch):
    """With one group there is one order, whatever the scores."""
    tiny = layer(3, 4, 0, NM(2, 4))
    solved, solve = [], error_order.solve

    def counted(*arguments, **words):
        solved.append(arguments)
        return solve(*arguments, **words)

    monkeypatch.setattr(error_order, "solve", counted)
    tried = OrdersTried.of(tiny, whole(4), 0)
    assert len(tried.errors) == 1 and len(solved) == 2  # and once without groups


def run(model, options=BY_ERROR, **more):
    return prune_model(model, padded_batches(2), options=options, **{**WORDS, **more})


@pytest.fixture(scope="module")
def reordered():
    """A tiny llama, pruned in orders searched by the error, with its records."""
    model, memory = tiny_model("llama"), BlockMemory()
    return model, run(model, recorder=memory), memory


def test_a_run_loses_less_and_says_so(reordered):
    model, report, _ = reordered
    applied = [item for item in report.permutations if item.applied]
    assert len(applied) >= 4 and all(item.by == "error" and item.error_after < item.error_before for item in applied)
    without = {item.name: item.relative_error for item in run(tiny_model("llama"), PruneOptions(include=MOVED)).layers}
    down = [item for item in report.layers if item.name.endswith("down_proj")]
    assert sum(item.relative_error for item in down) < 0.9 * sum(without[item.name] for item in down)
    assert "a short solve ends at a mean relative error of" in str(report)

    dense = tiny_model("llama")
    again = copy.deepcopy(dense)
    apply_permutations(again, report.permutations)
    with torch.no_grad():
        outputs = [one(**padded_batches(2)[0]).logits for one in (again, dense)]
    assert (outputs[0] - outputs[1]).norm() < 1e-5 * outputs[1].norm()
    apply_masks(again, report.masks)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_it_goes_on_from_its_records(reordered):
    model, report, memory = reordered
    again, half = tiny_model("llama"), BlockMemory({0: memory.records[0], 1: memory.records[1]})
    assert run(again, recorder=half).permutations == report.permutations
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def test_weights_that_move(reordered):
    options = PruneOptions(permute=True, permute_by="error", weights="refit", include=("*.0.*down_proj",))
    report = run(tiny_model("llama"), options, solver="reconstruct")
    (item,) = report.permutations
    plain = run(tiny_model("llama"), PruneOptions(weights="refit", include=options.include), solver="reconstruct")
    assert item.by == "error" and item.error_after < item.error_before
    assert report.layers[0].relative_error < plain.layers[0].relative_error


@pytest.mark.parametrize("solver", ["fw", "reconstruct", "wanda", "alps"])
def test_orders_are_searched_by_saliency_unless_asked_otherwise(solver):
    target = Target(pattern="2:4")
    assert PruneRequest.of(target, solver, PruneOptions(permute=True)).options.permute_by == "saliency"
    assert PruneRequest.of(target, solver, BY_ERROR).options.permute_by == "error"
    assert PruneRequest.of(target, solver).options.permute_by is None


def test_by_saliency_is_what_it_was(reordered):
    """The solver does not matter to it, and nothing of the error is recorded."""
    options = PruneOptions(permute=True, permute_by="saliency", include=("*.0.*down_proj",))
    ours = run(tiny_model("llama"), options).permutations
    theirs = prune_model(
        tiny_model("llama"), padded_batches(2), pattern="2:4", solver="wanda", options=options
    ).permutations
    assert ours == theirs and ours[0].by == "saliency" and ours[0].error_before is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"permute_by": "error"}, "permute_by is 'error', but permute is False"),
        ({"permute": True, "permute_by": "luck"}, "permute_by must be"),
    ],
)
def test_options_that_cannot_be_are_refused(words, expected):
    with pytest.raises(RelaxPruneError, match=expected):
        PruneOptions(**words)


def test_records_of_older_runs_are_read(reordered):
    item = reordered[1].permutations[-1]
    older = {name: value for name, value in item.to_dict().items() if name not in ("by", "error_before", "error_after")}
    assert Permutation.from_dict(older).by == "saliency"
    assert Permutation.from_dict(item.to_dict()) == item
    with pytest.raises(RelaxPruneError, match="has the wrong type"):
        Permutation.from_dict(item.to_dict() | {"error_after": "x"})
