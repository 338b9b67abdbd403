"""Pruning what is pruned already: zeros of a sparse source stay zero where weights move, and counts are exact."""

from __future__ import annotations

import copy

import pytest
import torch

from relaxprune import prune_model
from relaxprune.options import PruneOptions
from relaxprune.problems import NM, KSparse, TransposableNM
from relaxprune.pruning.source_zeros import pruning_zeros, source_zeros

from ..tiny_models import tiny_model

REFIT = PruneOptions(weights="refit")
BATCHES = [torch.randint(0, 64, (4, 24), generator=torch.Generator().manual_seed(1)) for _ in range(4)]


def zeros_of(model, names):
    return {name: model.get_parameter(name).detach() == 0 for name in names}


@pytest.mark.parametrize(
    ("solver", "more"),
    [("reconstruct", {}), ("alps", {"tune": 2}), ("sparsegpt", {"correct": 1.0})],
    ids=str,
)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"sparsity": 0.3}, {"sparsity": 0.5}),
        ({"sparsity": 0.7}, {"pattern": "2:4"}),
        ({"pattern": "1:4"}, {"sparsity": 0.5}),
    ],
    ids=str,
)
def test_pruned_stays_pruned(solver, more, first, second):
    model = tiny_model("llama")
    once = prune_model(model, BATCHES, solver=solver, options=REFIT, **first)
    before = zeros_of(model, once.masks)
    options = PruneOptions(weights="refit", **more)
    twice = prune_model(model, BATCHES, solver=solver, options=options, **second)
    for name, zero in zeros_of(model, twice.masks).items():
        mask = twice.masks[name]
        assert not (before[name] & ~zero).any(), "revived"
        assert zero[~mask].all()
        if "sparsity" in second:
            lines = mask if solver == "reconstruct" else mask.view(1, -1)  # the others count over the layer
            assert (lines.sum(dim=1) == lines.shape[1] - int(lines.shape[1] * second["sparsity"])).all()
            zeros = before[name].view(lines.shape)
            kept_zeros, lost = (zeros & lines).sum(dim=1), (~zeros & ~lines).sum(dim=1)
            assert not (kept_zeros.bool() & lost.bool()).any(), "a weight was pruned while a zero was kept"
        else:
            assert NM(2, 4).contains(mask)
    for layer in twice.layers:
        assert layer.lower_bound <= layer.objective + 1e-7 * layer.loss.dense_energy


def test_regrow_gives_zeros_new_values_and_a_dense_layer_is_not_touched():
    model = tiny_model("llama")
    prune_model(model, BATCHES, solver="reconstruct", options=REFIT, sparsity=0.7)
    again = copy.deepcopy(model)
    report = prune_model(
        again, BATCHES, solver="reconstruct", options=PruneOptions(weights="refit", regrow=True), sparsity=0.5
    )
    assert all(zero.float().mean() < 0.51 for zero in zeros_of(again, report.masks).values())
    dense = torch.randn(20, 20)
    dense[0, :5] = 0.0
    assert source_zeros(dense) is None


def test_masks_alone_leave_zeros_as_they_are():
    model = tiny_model("llama")
    once = prune_model(model, BATCHES, solver="wanda", sparsity=0.6)
    before = zeros_of(model, once.masks)
    twice = prune_model(model, BATCHES, solver="fw", sparsity=0.5)
    for name, zero in zeros_of(model, twice.masks).items():
        assert not (before[name] & ~zero).any()
        assert (twice.masks[name].sum(dim=1) == twice.masks[name].shape[1] // 2).all()


@pytest.mark.parametrize(
    "polytope",
    [KSparse(8), KSparse(130, per="layer"), KSparse(8, at_most=True), NM(2, 4), TransposableNM(2, 4)],
    ids=repr,
)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_zeros_come_first_in_every_set(polytope, share):
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(16, 16, generator=generator)
    zeros = torch.rand(16, 16, generator=generator) < share
    weight[zeros] = 0.0
    face = pruning_zeros(polytope, weight, zeros)
    face.validate((16, 16))
    for _ in range(5):
        mask = face.round(torch.rand(16, 16, generator=generator, dtype=torch.float64))
        assert polytope.contains(mask)
        if isinstance(polytope, TransposableNM):
            continue
        cells = {KSparse: (16, 16), NM: (16, 4, 4)}[type(polytope)]
        if polytope.rows_per_block((16, 16)) > 1:
            cells = (1, 256)
        kept = (zeros & mask).reshape(cells).sum(dim=-1)
        lost = (~zeros & ~mask).reshape(cells).sum(dim=-1)
        assert not (kept.bool() & lost.bool()).any()
