"""Finding blocks by structure."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relaxprune.models.blocks import NO_BLOCKS, find_blocks, output_heads
from relaxprune.models.layers import find_layers

from ..tiny_models import DECODERS, tiny_model

NAMES = {"gpt2": "transformer.h", "opt": "model.decoder.layers", "gpt_neox": "gpt_neox.layers"}
OTHERS = {
    "bert": ("bert.encoder.layer", 3),
    "albert": ("albert.encoder.albert_layer_groups", 1),
    "gemma3_vision": ("model.language_model.layers", 3),
}


def blocks_of(model):
    return find_blocks(model, find_layers(model)[0])


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family):
    blocks = blocks_of(tiny_model(family))
    assert (blocks.name, len(blocks.modules)) == (NAMES.get(family, "model.layers"), 3)
    assert blocks.names[2] == f"{blocks.name}.2"


@pytest.mark.parametrize("family", OTHERS)
def test_encoders_and_towers(family):
    blocks = blocks_of(tiny_model(family))
    assert (blocks.name, len(blocks.modules)) == OTHERS[family]


def test_the_vision_tower_comes_first_and_has_more_weights():
    model = tiny_model("gemma3_vision")
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in lists}
    assert "vision" in lists[0][0]
    assert max(sizes, key=sizes.get) == lists[0][0]


def test_experts_inside_blocks_are_no_blocks():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.adapters = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
            self.norms = nn.ModuleList(nn.LayerNorm(4) for _ in range(50))
            self.stack = nn.ModuleList(Block() for _ in range(2))

    blocks = blocks_of(Model())
    assert blocks.names == ("stack.0", "stack.1")


def test_no_list_means_no_blocks():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    assert blocks_of(model) is NO_BLOCKS
    assert output_heads(model) == []


def test_index_of_a_layer():
    model = tiny_model("llama")
    model.model.layers.extend([type(model.model.layers[0])(model.config, layer) for layer in range(3, 12)])
    layers, _ = find_layers(model)
    blocks = find_blocks(model, layers)
    index = {layer.name: blocks.index_of(layer) for layer in layers}
    assert index["model.layers.1.mlp.up_proj"] == 1
    assert index["model.layers.11.mlp.up_proj"] == 11
    assert index["lm_head"] is None
    assert output_heads(model) == [model.lm_head]
    assert torch.is_tensor(model.lm_head.weight)
