"""What a layer's objective is made of: which tokens count, when they are gathered, and how far the Gram is shrunk."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from relaxprune.inputs.batches import read_batches, without_first
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.shrinkage import estimate, shrink
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model

from ..tiny_models import padded_batches, tiny_model


def pruned(model, batches, solver="wanda", **statistics):
    options = PruneOptions(statistics=StatisticsOptions(**statistics))
    return prune_model(model, batches, sparsity=0.5, solver=solver, options=options)


class Chain(nn.Module):
    """One block of two layers, the second on what the first puts out; remembers what both read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))])

    def forward(self, x):
        return self.blocks[0](x)


def energies(model, batches, weights=None):
    """The Gram of every layer, on the inputs that the model gives it now."""
    found = {}
    for layer in find_layers(model)[0]:
        seen = []
        hook = layer.module.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for batch in batches:
                model(batch)
        hook.remove()
        tokens = torch.cat([part.reshape(-1, part.shape[-1]) for part in seen]).double()
        weight = torch.ones(len(tokens), dtype=torch.float64) if weights is None else weights(tokens)
        found[layer.name] = (tokens * weight.unsqueeze(1)).T @ tokens / weight.sum()
    return found


def objective(dense, mask, gram):
    lost = dense.double().masked_fill(mask, 0.0)
    return float(((lost @ gram) * lost).sum())


@pytest.mark.parametrize("collect", ["block", "groups"])
def test_inputs_come_through_the_pruned_groups_only_where_asked_for(collect):
    model, batches = Chain(), list(torch.randn(3, 20, 6))
    before = copy.deepcopy(model)
    report = pruned(model, batches, collect=collect)
    dense = {layer.name: layer.matrix() for layer in find_layers(before)[0]}
    on = energies(before if collect == "block" else model, batches)
    other = energies(model if collect == "block" else before, batches)
    for layer in report.layers:
        mask = report.masks[layer.parameter]
        assert layer.objective == pytest.approx(objective(dense[layer.name], mask, on[layer.name]), rel=1e-5)
    second = report.layers[1]
    assert second.objective != pytest.approx(
        objective(dense[second.name], report.masks[second.parameter], other[second.name]), rel=1e-3
    )


def test_groups_of_a_llama_are_those_that_read_one_tensor_in_order():
    report = pruned(tiny_model("llama"), padded_batches(2), collect="groups")
    names = [layer.name.split(".")[-1] for layer in report.layers if layer.block == 1]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    assert {layer.inputs.gram.split(".")[-1] for layer in report.layers} == {
        "q_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
    }
    assert {layer.inputs.tokens for layer in report.layers} == {2 * 2 * 12 - 3} and len(report.skipped) == 2


class Sometimes(nn.Module):
    """The first batch reaches one layer of the block only."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])])

    def forward(self, x):
        one, two = (self.get_submodule(f"blocks.0.{place}") for place in (0, 1))
        return one(x) if len(x) == 2 else two(torch.relu(one(x)))


def test_layers_that_the_first_batch_misses_are_gathered_all_the_same():
    report = pruned(Sometimes(), [torch.randn(2, 4), torch.randn(9, 4)], collect="groups")
    assert [(layer.name, layer.inputs.tokens) for layer in report.layers] == [("blocks.0.0", 11), ("blocks.0.1", 9)]


@given(splits=st.lists(st.integers(1, 12), min_size=1, max_size=5), cap=st.floats(0.2, 8), seed=st.integers(0, 10))
def test_a_capped_gram_is_the_weighted_mean_however_batches_are_split(splits, cap, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(splits), 4, generator=generator)
    tokens *= 10 ** torch.randn(len(tokens), 1, generator=generator)
    model = nn.Sequential(nn.Linear(4, 3, bias=False))

    def weights(read):
        norms = read.square().sum(1)
        return (cap * norms.median() / norms).clamp(max=1)

    dense = model[0].weight.detach().clone()
    report = pruned(model, list(tokens.split(splits)), token_cap=cap)
    gram = energies(model, [tokens], weights)["0"]
    (layer,) = report.layers
    assert layer.inputs.tokens == len(tokens)
    assert layer.inputs.token_weight == pytest.approx(float(weights(tokens.double()).mean()), rel=1e-5)
    assert layer.loss.dense_energy == pytest.approx(
        objective(dense, torch.zeros(3, 4, dtype=torch.bool), gram), rel=1e-4
    )
    assert layer.objective == pytest.approx(objective(dense, report.masks[layer.parameter], gram), rel=1e-4)


def test_a_cap_with_zero_tokens_is_that_of_the_others():
    tokens = torch.cat([torch.zeros(30, 3), torch.eye(3), 10 * torch.ones(1, 3)])
    (layer,) = pruned(nn.Sequential(nn.Linear(3, 2)), [tokens], token_cap=1.0).layers
    assert layer.inputs.token_weight == pytest.approx((33 + 1 / 300) / 34)
    (layer,) = pruned(nn.Sequential(nn.Linear(3, 2)), [torch.zeros(5, 3)], token_cap=1.0).layers
    assert (layer.loss.dense_energy, layer.inputs.token_weight) == (0.0, 1.0)


def test_skipped_tokens_are_the_first_real_ones():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.int64), "attention_mask": mask}
    (read,) = without_first(read_batches([batch]), 2)
    assert read.kept is not None and read.kept.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert torch.equal(read.kwargs["attention_mask"], mask)  # the model sees all of them
    report = pruned(tiny_model("llama"), padded_batches(2), skip_tokens=3)
    assert {layer.inputs.tokens for layer in report.layers} == {2 * 2 * (12 - 3) - 3}


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([torch.randn(2, 5, 4)], "skip_tokens is 5.*token ids"),
        ([torch.ones(2, 5, dtype=torch.int64)], "skip_tokens must leave tokens.*windows of 5 in batch 0"),
    ],
)
def test_skipping_what_is_not_there_is_refused(batches, words):
    with pytest.raises(RelaxPruneError, match=words):
        without_first(read_batches(batches), 5)


@given(share=st.floats(0, 1), cols=st.integers(1, 6), seed=st.integers(0, 20))
def test_a_shrunk_gram_keeps_its_diagonal_and_its_curvature(share, cols, seed):
    tokens = torch.randn(4, cols, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    gram = tokens.T @ tokens
    shrunk = shrink(gram.clone(), share)
    assert torch.equal(shrunk.diagonal(), gram.diagonal())
    torch.testing.assert_close(shrunk, (1 - share) * gram + share * torch.diag(gram.diagonal()))
    assert float(torch.linalg.eigvalsh(shrunk)[0]) > -1e-12


def halved(batches, **options):
    sums = GramAccumulator(batches[0].shape[-1], parts=2, **options)
    for number, batch in enumerate(batches):
        sums.add(batch, batch=number, part=number % 2)
    return sums


def test_the_estimate_is_near_the_share_with_the_least_error():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(24, 24, generator=generator) / 24**0.5 + torch.eye(24)
    truth = (root.T @ root).double()
    scale = truth.diagonal().rsqrt()
    for count in (8, 32, 128):
        batches = list((torch.randn(8 * count, 24, generator=generator) @ root).split(count))
        sums = halved(batches)
        gram = sums.gram().double()
        shares = torch.linspace(0, 1, 201).tolist()
        losses = [float(((shrink(gram.clone(), s) - truth) * scale[:, None] * scale).square().sum()) for s in shares]
        best = min(losses)
        found = float(((shrink(gram.clone(), estimate(sums)) - truth) * scale[:, None] * scale).square().sum())
        assert found < 1.15 * best < 1.15 * losses[0]


def test_the_estimate_at_its_ends():
    same = torch.randn(30, 5)
    assert estimate(halved([same, same])) == pytest.approx(0, abs=1e-12)
    assert estimate(halved([same])) == 1.0
    assert estimate(halved([torch.eye(3), torch.eye(3)])) == 0.0
    assert estimate(halved([torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])])) in (0.0, 1.0)


def test_halves_weigh_to_the_whole_with_a_cap_too():
    batches = [10 ** torch.randn(n, 1) * torch.randn(n, 4) for n in (7, 3, 5)]
    sums = halved(batches, limit=2.0)
    (even, odd), (even_weight, odd_weight) = ([of([0]), of([1])] for of in (sums.mean, sums.part_weight))
    assert even_weight + odd_weight == pytest.approx(sums.weight)
    whole = (even * even_weight + odd * odd_weight) / sums.weight
    torch.testing.assert_close(whole.float(), sums.gram(), rtol=1e-4, atol=1e-6)
    twin = sums.clone()
    twin.add(batches[0], part=1)
    assert torch.equal(sums.mean([1]), odd) and not torch.equal(twin.mean([1]), odd)


@pytest.mark.parametrize("shrinkage", [0.3, "auto"])
def test_the_shrunk_gram_is_what_is_solved_and_reported(shrinkage):
    model, batches = Chain(), list(torch.randn(4, 20, 6) + 1)
    before = copy.deepcopy(model)
    report = pruned(model, batches, shrinkage=shrinkage, solver="fw")
    dense = {layer.name: layer.matrix() for layer in find_layers(before)[0]}
    for name, gram in energies(before, batches).items():
        layer = next(layer for layer in report.layers if layer.name == name)
        assert layer.inputs.shrinkage == shrinkage or 0 < layer.inputs.shrinkage < 1
        shrunk = shrink(gram, layer.inputs.shrinkage)
        assert layer.objective == pytest.approx(objective(dense[name], report.masks[layer.parameter], shrunk), rel=1e-5)
        assert layer.lower_bound <= layer.objective
    assert report.options["statistics"]["shrinkage"] == shrinkage


def test_full_shrinkage_is_solved_by_wandas_mask():
    report = pruned(Chain(), list(torch.randn(2, 20, 6)), shrinkage=1.0, solver="fw")
    assert all(layer.objective == pytest.approx(layer.loss.wanda_objective) for layer in report.layers)


def test_auto_needs_two_batches():
    with pytest.raises(RelaxPruneError, match=r'shrinkage "auto".*got 1'):
        pruned(tiny_model("llama"), padded_batches(1), shrinkage="auto")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"collect": "group"}, "collect must be one of block, groups"),
        ({"skip_tokens": -1}, "skip_tokens"),
        ({"skip_tokens": 1.5}, "skip_tokens"),
        ({"token_cap": 0.0}, "token_cap"),
        ({"token_cap": math.nan}, "token_cap"),
        ({"token_cap": True}, "token_cap"),
        ({"shrinkage": 1.5}, "shrinkage"),
        ({"shrinkage": math.nan}, "shrinkage"),
        ({"shrinkage": "atuo"}, "shrinkage"),
    ],
)
def test_values_out_of_range_are_refused(options, words):
    with pytest.raises(RelaxPruneError, match=words):
        StatisticsOptions(**options)
