"""Tensors that share memory are found, whatever their names, classes and shapes say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from relaxprune.models.layers import find_layers
from relaxprune.models.shared_memory import shared_memory


def pair(one: Tensor, other: Tensor) -> nn.Module:
    """Two linear layers with these weights."""
    layers = [nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)]
    for layer, weight in zip(layers, (one, other), strict=True):
        layer.weight = nn.Parameter(weight)
    return nn.Sequential(*layers)


def flat() -> Tensor:
    return torch.randn(8, 8)


@pytest.mark.parametrize(
    ("build", "tied"),
    [
        (lambda big: (big[:4, :4], big[2:6, 2:6]), True),
        (lambda big: (big.flatten()[:16].view(4, 4), big.flatten()[15:31].view(4, 4)), True),
        (lambda big: (big.flatten()[:16].view(4, 4), big.flatten()[16:32].view(4, 4)), False),
        (lambda big: (big[:4, :4], big[:4, 4:]), False),  # columns of one matrix: their spans meet, they do not
        (lambda big: (big[:4, 0::2], big[:4, 1::2]), False),
        (lambda big: (big[:4, :4], big[:4, :4].T), True),
        (lambda big: (big[:4, :4], big[:4, :4].clone()), False),
    ],
)
def test_windows_of_one_buffer(build, tied):
    model = pair(*build(flat()))
    layers, skipped = find_layers(model)
    assert len(layers) == (0 if tied else 2)
    assert [item.reason for item in skipped] == (
        [f"tied to {other}.weight: pruning it would change them too" for other in (1, 0)] if tied else []
    )


def test_a_weight_whose_entries_share_memory():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.randn(4, 1).expand(4, 4), requires_grad=False)
    assert shared_memory(model) == {"0.weight": ["0.weight"]}
    model[0].weight = nn.Parameter(torch.randn(7).as_strided((4, 4), (1, 1)), requires_grad=False)
    assert shared_memory(model) == {"0.weight": ["0.weight"]}
    model[0].weight = nn.Parameter(torch.randn(4, 8)[:, ::2])
    assert shared_memory(model) == {}


@pytest.mark.parametrize("held", ["buffer", "attribute", "other dtype"])
def test_aliases_that_are_no_parameters(held):
    model = nn.Sequential(nn.Linear(4, 4), nn.Module())
    weight = model[0].weight.detach()
    if held == "buffer":
        model[1].register_buffer("copy", weight[1:])
    elif held == "attribute":
        model[1].copy = weight.T
    else:
        model[1].copy = weight.view(torch.int32)
    layers, skipped = find_layers(model)
    assert not layers and skipped[0].reason == "tied to 1.copy: pruning it would change them too"
