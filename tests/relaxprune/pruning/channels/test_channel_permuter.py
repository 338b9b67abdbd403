"""Reordering channels for N:M masks: the model computes the same before it is pruned, and the masks keep more."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relaxprune.models.layers import apply_masks, find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import NM, KSparse, RelaxPruneError, TransposableNM
from relaxprune.pruning.channels import channel_permuter as permuting
from relaxprune.pruning.channels.channel_order import channel_order, kept_saliency
from relaxprune.pruning.channels.channel_paths import NO_GROUPS, NO_PRODUCER, ChannelPath, find_paths
from relaxprune.pruning.channels.permutation import Permutation
from relaxprune.pruning.channels.reorder import apply_permutations
from relaxprune.pruning.pipeline import prune_model

from ...recorders import BlockMemory
from ...tiny_models import padded_batches, tiny_model

PERMUTE = PruneOptions(permute=True)
# Layers whose columns can be reordered, in a block, and the layers that make them.
MADE_BY = {
    "llama": {"self_attn.o_proj": ["self_attn.v_proj"], "mlp.down_proj": ["mlp.gate_proj", "mlp.up_proj"]},
    "gpt2": {"mlp.c_proj": ["mlp.c_fc"]},  # queries, keys and values come from one layer there
    "bert": {"attention.output.dense": ["attention.self.value"], "output.dense": ["intermediate.dense"]},
    "opt": {"self_attn.out_proj": ["self_attn.v_proj"], "fc2": ["fc1"]},
}


def pruned(model, **more):
    """Prune by Wanda, which is quick, with channels reordered."""
    return prune_model(model, padded_batches(2), **{"pattern": "2:4", "solver": "wanda", "options": PERMUTE, **more})


def in_block(name):
    """The part of a layer's name after the block's number."""
    return name.split(next(part for part in name.split(".") if part.isdigit()) + ".", 1)[1]


def logits(model):
    with torch.no_grad():
        return model(**padded_batches(2)[0]).logits


@pytest.mark.parametrize("family", list(MADE_BY))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_reordered_and_that_the_model_computes_the_same(family, dtype):
    dense = tiny_model(family, dtype)
    model, again = copy.deepcopy(dense), copy.deepcopy(dense)
    report = pruned(model)
    applied = [item for item in report.permutations if item.applied]
    found = {in_block(item.layer): [in_block(name) for name in item.producers] for item in applied}
    assert found == MADE_BY[family] and len(applied) == 3 * len(found)
    assert {item.layer for item in report.permutations} == {item.name for item in report.layers}
    assert all(item.reason == NO_PRODUCER for item in report.permutations if not item.applied)
    assert all(0 < item.kept_before < item.kept_after <= 1 for item in applied)

    apply_permutations(again, report.permutations)
    weights = [(layer.matrix(), other.matrix()) for layer, other in zip(*map(layers_of, (again, dense)), strict=True)]
    assert sum(not torch.equal(one, other) for one, other in weights) == sum(1 + len(p.producers) for p in applied)
    distance = (logits(again) - logits(dense)).norm() / logits(dense).norm()
    assert distance < (1e-5 if dtype == torch.float32 else 0.05)
    apply_masks(again, report.masks)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), model.parameters(), strict=True))


def layers_of(model):
    return find_layers(model)[0]


def test_masks_lose_less():
    with_order, without = (pruned(tiny_model("llama"), options=PruneOptions(permute=on)) for on in (True, False))
    errors = [{item.name: item.relative_error for item in report.layers} for report in (with_order, without)]
    down = [name for name in errors[0] if name.endswith("down_proj")]
    assert sum(errors[0][name] for name in down) < 0.85 * sum(errors[1][name] for name in down)
    assert without.permutations == []


def test_heads_that_share_values_get_one_order():
    """Four heads of 8, two for each value head: the order in both heads of a pair is that of the value's rows."""
    item = next(item for item in pruned(tiny_model("llama")).permutations if item.layer.endswith("0.self_attn.o_proj"))
    rows, columns = torch.tensor(item.rows).view(2, 8), torch.tensor(item.columns).view(4, 8)
    within = rows - 8 * torch.arange(2).unsqueeze(1)
    assert torch.equal(within.sort(dim=1).values, torch.arange(8).expand(2, 8)) and len(set(item.rows)) == 16
    assert torch.equal(columns - 8 * torch.arange(4).unsqueeze(1), within.repeat_interleave(2, dim=0))


def test_a_run_goes_on_from_its_records():
    dense = tiny_model("llama")
    whole, partly = copy.deepcopy(dense), copy.deepcopy(dense)
    memory = BlockMemory()
    full = pruned(whole, recorder=memory)
    again = pruned(partly, recorder=BlockMemory({0: memory.records[0], 1: memory.records[1]}))
    assert again.permutations == full.permutations
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), partly.parameters(), strict=True))


def test_a_layer_is_reordered_although_its_producers_are_left_alone():
    dense = tiny_model("llama")
    model = copy.deepcopy(dense)
    report = pruned(model, options=PruneOptions(permute=True, include=("*.down_proj",)))
    assert [item.applied for item in report.permutations] == [True] * 3
    gates = [(layer.matrix(), other.matrix()) for layer, other in zip(*map(layers_of, (model, dense)), strict=True)
             if layer.name.endswith("gate_proj")]  # fmt: skip
    for item, (new, old) in zip(report.permutations, gates, strict=True):
        assert torch.equal(new, old[torch.tensor(item.rows)])


class Scaled(nn.Module):
    """A block in which each hidden channel has a scale of its own, which stays where it is."""

    def __init__(self, scale: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 16) if scale else torch.ones(16))

    def forward(self, values):
        return values + self.down(torch.relu(self.up(values)) * self.scale)


def blocks(scale: bool) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.layers = nn.ModuleList(Scaled(scale) for _ in range(2))
    model.forward = lambda values: model.layers[1](model.layers[0](values))
    return model


@pytest.mark.parametrize("scale", [False, True])
def test_channels_that_are_not_treated_alike_stay(scale):
    model = blocks(scale)
    batches = [torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(1))]
    report = prune_model(model, batches, pattern="2:4", solver="wanda", options=PERMUTE)
    reasons = {item.layer: item.reason for item in report.permutations}
    assert reasons["layers.0.down"] == (NO_GROUPS if scale else "")
    assert reasons["layers.0.up"] == NO_PRODUCER


def test_an_order_that_changes_the_block_is_put_back(monkeypatch):
    """A wrong path, which the proof on calibration text must catch: the gate's rows are left out."""
    paths = permuting.find_paths

    def wrong(*arguments):
        found = paths(*arguments)
        return [
            replace(path, producers=path.producers[:1]) if isinstance(path, ChannelPath) else path for path in found
        ]

    dense = tiny_model("llama")
    model = copy.deepcopy(dense)
    monkeypatch.setattr(permuting, "find_paths", wrong)
    report = pruned(model)
    reasons = {item.layer: item.reason for item in report.permutations}
    assert reasons["model.layers.0.mlp.down_proj"] == permuting.UNEQUAL
    assert reasons["model.layers.0.self_attn.o_proj"] == ""
    apply_permutations(dense, report.permutations)
    apply_masks(dense, report.masks)
    assert all(torch.equal(one, other) for one, other in zip(dense.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    "target", [{"sparsity": 0.5}, {"polytope": KSparse(16)}, {"polytope": TransposableNM(2, 4)}], ids=str
)
def test_other_targets_are_refused(target):
    with pytest.raises(RelaxPruneError, match="permute reorders channels for an N:M pattern, got"):
        pruned(tiny_model("llama"), pattern=None, **target)


def test_a_polytope_of_patterns_is_taken():
    assert any(item.applied for item in pruned(tiny_model("llama"), pattern=None, polytope=NM(4, 8)).permutations)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer": "nowhere"}, "names 'nowhere'"),
        ({"columns": (0,) * 48}, "must be one of its 48 channels"),
        ({"rows": (0,)}, "must be one of its 48 channels, got 1"),
    ],
)
def test_orders_that_cannot_be_are_refused_before_anything_changes(changes, expected):
    model = tiny_model("llama")
    before = copy.deepcopy(model)
    whole = tuple(range(47, -1, -1))
    facts = {"layer": "model.layers.0.mlp.down_proj", "columns": whole, "rows": whole, **changes}
    wrong = Permutation(block=0, reason="", producers=("model.layers.0.mlp.up_proj",), **facts)
    with pytest.raises(RelaxPruneError, match=expected):
        apply_permutations(model, [wrong])
    assert all(torch.equal(one, other) for one, other in zip(before.parameters(), model.parameters(), strict=True))


def test_permutations_survive_their_record():
    item = pruned(tiny_model("llama")).permutations[3]
    assert Permutation.from_dict(item.to_dict()) == item
    with pytest.raises(RelaxPruneError, match="exactly the keys"):
        Permutation.from_dict({})
    for changes in ({"columns": 3}, {"rows": [0.5]}, {"producers": [1]}, {"layer": {}}, {"kept_before": "x"}):
        with pytest.raises(RelaxPruneError, match="has the wrong type"):
            Permutation.from_dict(item.to_dict() | changes)


@given(
    rows=st.integers(1, 6), groups=st.integers(1, 5), group=st.integers(1, 6), data=st.data(), seed=st.integers(0, 999)
)
def test_an_order_never_keeps_less(rows, groups, group, data, seed):
    keep = data.draw(st.integers(0, group))
    scores = torch.randn(rows, groups * group, generator=torch.Generator().manual_seed(seed)).square()
    order = channel_order(scores, keep, group, seed)
    assert sorted(order.tolist()) == list(range(groups * group))
    assert kept_saliency(scores[:, order], keep, group) >= kept_saliency(scores, keep, group)


def test_the_best_order_of_two_groups_is_found():
    """All heavy columns in one group: spread evenly, every one of them is kept."""
    scores = torch.ones(3, 8)
    scores[:, :4] = 100
    assert kept_saliency(scores[:, channel_order(scores, 2, 4)], 2, 4) == 3 * 400


def test_paths_of_a_block_without_attention():
    model = blocks(False)
    layers = [layer for layer in find_layers(model)[0] if layer.name.startswith("layers.0.")]
    values = torch.randn(5, 8)
    up, down = find_paths(layers, lambda: model.layers[0](values), 4)
    assert up == NO_PRODUCER and isinstance(down, ChannelPath) and down.producers == (0,)
    assert [orbit.rows.tolist() for orbit in down.orbits] == [list(range(16))]
