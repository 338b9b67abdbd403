"""What is borrowed is given back, and what cannot be pruned is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relaxprune.models.forward import borrowed, refuse_unsupported
from relaxprune.problems import RelaxPruneError

from ..tiny_models import tiny_model


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
