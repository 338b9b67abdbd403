"""A model without values tells what one with values does: which layers read one tensor, and what a pass computes."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from relaxprune.forecast.meta_pass import meta_pass
from relaxprune.inputs.batches import Batch, run_model
from relaxprune.inputs.layer_listener import LayerListener
from relaxprune.models.blocks import find_blocks
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers

from ..tiny_models import DECODERS, config_of, tiny_model

IDS = torch.arange(24).view(2, 12)


def passed(model, **more):
    layers = find_layers(model)[0]
    return meta_pass(model, layers, find_blocks(model, layers), *IDS.shape, **more)


def empty(config):
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def heard(model):
    """The names of layers that read one tensor, in a pass with values."""
    listener = LayerListener(find_layers(model)[0])
    with borrowed(model), listener.listening(0, None):
        run_model(model, Batch((IDS,), {}))
    return {frozenset(layer.name for layer in group.layers) for group in listener.groups}


@pytest.mark.parametrize("family", DECODERS)
def test_groups_are_those_that_are_heard(family):
    found = passed(empty(config_of(family)))
    groups = {frozenset(layer.name for layer in group.layers) for group in found.groups}
    tied = {frozenset(["lm_head"])}  # without values nothing shares memory
    assert not found.unknown
    assert groups - tied == heard(tiny_model(family)) - tied


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "qwen3_moe"])
def test_operations_are_those_of_a_pass(family):
    model, found = tiny_model(family), passed(empty(config_of(family)))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(IDS, use_cache=False)
    attention = 3 * 24 * 2 * 2 * 12 * 32  # torch does not count the kernel that has it on a CPU
    assert found.blocks.flops + found.outside.flops == counter.get_total_flops() + attention
    assert found.outside.flops > 0 and found.blocks.launches > 10


def test_experts_get_their_share():
    found = passed(empty(config_of("qwen3_moe")))
    experts = [group for group in found.groups if group.layers[0].expert is not None]
    assert len(experts) == 3 * 4 * 2 and {group.tokens for group in experts} == {24 * 2 // 4}
    dense = sum(group.layers[0].expert is None for group in found.groups)
    assert dense == len(found.groups) - len(experts)


def test_every_block_counts_also_where_one_stands_for_all():
    """The first block is the dense one of DeepSeek; the others are alike."""
    config = config_of("deepseek_v3")
    three = passed(empty(config))
    config.num_hidden_layers = 2
    two = passed(empty(config))
    config.num_hidden_layers = 1
    one = passed(empty(config))
    assert three.blocks.flops - two.blocks.flops == two.blocks.flops - one.blocks.flops != one.blocks.flops
    assert len(three.groups) - len(two.groups) == len(two.groups) - len(one.groups)


def test_the_model_is_left_as_it_was():
    model = empty(config_of("qwen3_moe"))
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    passed(model)
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_pre_hooks and not module._forward_hooks


def test_a_model_that_cannot_be_gone_through_is_estimated():
    model = empty(config_of("llama"))

    def broken(*_args, **_kwargs):
        raise ValueError("no way through.\nIndeed")

    model.model.layers[1].mlp.forward = broken
    model.model.layers[0].mlp.forward = broken
    found = passed(model)
    weights = sum(parameter.numel() for block in model.model.layers for parameter in block.parameters())
    assert found.unknown == "no way through" and found.blocks.flops == 2 * 24 * weights
    assert len(found.groups) == len(find_layers(model)[0])
