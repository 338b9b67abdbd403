"""A model inside another module is pruned as it is alone: the same layers, and no head."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model

from ..tiny_models import tiny_model


class ValueHead(nn.Module):
    """As reinforcement learning has it: a model, and a number for each of its states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.pretrained_model, self.v_head = model, nn.Linear(32, 1)

    def forward(self, input_ids):
        output = self.pretrained_model(input_ids, output_hidden_states=True)
        return output.logits, self.v_head(output.hidden_states[-1])


class Trainer(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = ValueHead(model)

    def forward(self, input_ids):
        return self.inner(input_ids)


def compiled_blocks(model: nn.Module) -> nn.Module:
    for index, block in enumerate(model.model.layers):
        model.model.layers[index] = torch.compile(block, backend="eager")
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


WRAPPERS = {
    "value head": ValueHead,
    "deep": Trainer,
    "data parallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled in place": compiled_in_place,
    "compiled blocks": compiled_blocks,
}
PREFIXES = ("pretrained_model.", "inner.", "module.", "_orig_mod.")


def plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.replace(prefix, "")
    return name


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_as_alone(name):
    torch.manual_seed(0)
    alone, batches = tiny_model("llama"), [torch.randint(3, 60, (2, 8)) for _ in range(2)]
    model = WRAPPERS[name](copy.deepcopy(alone))
    with torch.no_grad():
        model(batches[0])  # compiles, where there is something to compile
    expected = prune_model(alone, batches, sparsity=0.5, solver="wanda")
    report = prune_model(model, batches, sparsity=0.5, solver="wanda")
    masks = {plain(key): mask for key, mask in report.masks.items()}
    assert list(masks) == list(expected.masks) and report.propagation == "replay"
    assert all(torch.equal(mask, expected.masks[key]) for key, mask in masks.items())
    heads = [item.name for item in report.skipped if "head" in item.name]
    assert any(head.endswith("lm_head") for head in heads)


class Plain(nn.Module):
    """A language model of nobody's interface, with a head that nothing names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(40, 8)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.out = nn.Linear(8, 40, bias=False)

    def forward(self, ids):
        x = self.tokens(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.out(x)


def test_a_head_is_known_by_its_shape_too():
    report = prune_model(Plain(), [torch.randint(40, (2, 5))], sparsity=0.5, solver="wanda")
    assert [layer.name for layer in report.layers] == ["layers.0", "layers.1"]
    assert [item.name for item in report.skipped] == ["tokens", "out"]


class Merging(nn.Linear):
    """Adds its adapter to its weight in evaluation mode, as loralib does."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += -1.0 if mode else 1.0
            self.merged = not mode
        return self


def test_weights_that_change_with_the_mode_are_refused_and_stay():
    model = nn.Sequential(Merging(), nn.ReLU()).train()
    before = model[0].weight.detach().clone()
    with pytest.raises(RelaxPruneError, match=r"eval\(\) changes '0.weight'"):
        prune_model(model, [torch.randn(4, 6)], sparsity=0.5)
    torch.testing.assert_close(model[0].weight.detach(), before)
    assert model.training and model[0].training


def test_a_model_that_is_split_is_refused():
    model = nn.DataParallel(nn.Linear(4, 4))
    model.device_ids = [0, 1]
    with pytest.raises(RelaxPruneError, match="got a DataParallel, which splits it"):
        prune_model(model, [torch.randn(4, 4)], sparsity=0.5)
