"""What is borrowed is given back, and what cannot be pruned is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relaxprune.inputs.batches import borrowed, read_batches, refuse_unsupported, run_model
from relaxprune.problems import RelaxPruneError

from ..tiny_models import padded_batches, tiny_model


@pytest.mark.parametrize("error", [None, KeyError, KeyboardInterrupt])
def test_everything_is_as_before(error):
    model = tiny_model("gemma3_vision").train()
    model.model.language_model.layers[1].eval()
    model.config.use_cache = True
    training = {name: module.training for name, module in model.named_modules()}
    configs = copy.deepcopy(model.config.to_dict())
    state, grad = torch.get_rng_state(), torch.is_grad_enabled()
    try:
        with borrowed(model):
            assert not any(module.training for module in model.modules())
            assert model.config.get_text_config().use_cache is False
            assert not torch.is_grad_enabled()
            torch.rand(5)
            if error:
                raise error
    except (KeyError, KeyboardInterrupt):
        pass
    assert {name: module.training for name, module in model.named_modules()} == training
    assert model.config.to_dict() == configs
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled() == grad


def test_tokens_and_mappings():
    ids = torch.arange(6)
    one, two, three = read_batches(iter([ids, ids.view(2, 3), {"input_ids": ids.view(1, 6), "use_cache": True}]))
    assert one.args[0].shape == (1, 6) and two.args[0].shape == (2, 3)
    assert list(three.kwargs) == ["input_ids"]
    assert read_batches([torch.ones(4)])[0].args[0].shape == (4,)


def test_padding_is_read_from_the_mask():
    batches = read_batches(padded_batches())
    assert batches[0].kept is None
    assert int((~batches[1].kept).sum()) == 3


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([], "at least one batch"),
        ("some text", "iterable of tensors or mappings, got one str"),
        ({"input_ids": 1}, "got one dict"),
        ([["a"]], "got a list at index 0"),
        ([{"attention_mask": torch.ones(1, 1, 3, 3)}], r"\(batch, tokens\), got \(1, 1, 3, 3\) in batch 0"),
    ],
)
def test_other_batches_are_refused(batches, words):
    with pytest.raises(RelaxPruneError, match=words):
        read_batches(batches)


def test_cache_is_not_asked_for():
    model = tiny_model("llama")
    with borrowed(model):
        assert run_model(model, read_batches(padded_batches())[0]).past_key_values is None


def meta_model():
    return nn.Linear(3, 3, device="meta")


def offloaded_model():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0]._hf_hook = object()
    return model


def mapped_model():
    model = nn.Sequential(nn.Linear(3, 3))
    model.hf_device_map = {"0": "cpu", "1": "disk"}
    return model


def adapted_model():
    kind = type("LoraLayer", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})
    return nn.Sequential(kind(3, 3))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (meta_model, "meta tensors"),
        (offloaded_model, "device map"),
        (mapped_model, "device map"),
        (adapted_model, "adapters"),
        (nn.ReLU, "parameters"),
        (dict, "torch.nn.Module, got dict"),
    ],
)
def test_unsupported_models_are_refused_in_one_sentence(build, words):
    with pytest.raises(RelaxPruneError, match=words) as caught:
        refuse_unsupported(build())
    assert "\n" not in str(caught.value)


def test_a_device_map_with_one_place_is_fine():
    model = nn.Linear(3, 3)
    model.hf_device_map = {"": "cpu"}
    refuse_unsupported(model)
