"""What a layer's error counts: exact on linear models, invariant where it should be, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relaxprune.inputs.batches import read_batches
from relaxprune.models.blocks import NO_BLOCKS, find_blocks
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.pruning.sharing.sensitivity import sensitivities

from ...tiny_models import padded_batches, tiny_model


def test_a_chain_of_linear_layers_has_the_norms_of_what_follows() -> None:
    """With random signs s the gradient at the first output is W2ᵀ s, whose expected square is ‖W2‖²."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    inputs = [torch.randn(4000, 6)]
    with borrowed(model):
        found = sensitivities(model, NO_BLOCKS, find_layers(model)[0], read_batches(inputs))
    second = model[1].weight.detach().double()
    assert found["1"] == 4000, "each output has a gradient of 1 or -1"
    assert found["0"] == pytest.approx(4000 * float(second.square().sum()) / 5, rel=0.05)


def test_a_logit_model_matches_its_fisher_information() -> None:
    """One layer of logits: E (p - onehot)² summed is 1 - Σp², for labels drawn from p."""
    model = tiny_model("llama")
    batches = read_batches(padded_batches(8, windows=16))
    layers = find_layers(model)[0]
    head = [layer for layer in layers if layer.name == "lm_head"]
    with borrowed(model):
        found = sensitivities(model, find_blocks(model, layers), head, batches)["lm_head"]
        expected, tokens = 0.0, 0
        for batch in batches:
            share = model(**batch.kwargs).logits.softmax(-1)
            share = share[batch.kwargs["attention_mask"] != 0]
            expected += float((1 - share.square().sum(-1)).sum())
            tokens += len(share)
    assert tokens < 2048, "all of them are used"
    assert found * head[0].shape[0] == pytest.approx(expected, rel=0.1)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model("llama")
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    state = torch.random.get_rng_state()
    with borrowed(model):
        layers = find_layers(model)[0]
        blocks, read = find_blocks(model, layers), read_batches(padded_batches(1))
        first, again = (sensitivities(model, blocks, layers, read) for _ in range(2))
        assert first == sensitivities(model, NO_BLOCKS, layers, read), "activations that are made again are the same"
    assert first == again and min(first.values()) > 0
    assert {name for name, item in model.named_parameters() if item.requires_grad} == {"model.norm.weight"}
    assert all(item.grad is None for item in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())
