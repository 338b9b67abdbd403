"""Only layers that compute columns times weight take part, in every dtype; what does not says what was measured."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from relaxprune.inputs.batches import read_batches
from relaxprune.inputs.output_check import NEVER_CALLED, USED_BESIDES, OutputCheck
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.planner import plan_model

from ..tiny_models import DECODERS, padded_batches, tiny_model


def failures(model, batch):
    layers, _ = find_layers(model)
    with borrowed(model), OutputCheck(layers) as check:
        check.run(model, read_batches([batch])[0])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return check.failed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*DECODERS, "deepseek_v3", "bert", "albert", "gemma3_vision"])
def test_every_layer_of_a_family_passes(family, dtype):
    assert failures(tiny_model(family, dtype), padded_batches()[1]) == {}


class Odd(nn.Linear):
    """A linear layer that computes something else, in a way of choice."""

    def __init__(self, way: str) -> None:
        super().__init__(8, 8)
        self.way = way

    def forward(self, x):
        if self.way == "norm":
            return super().forward(functional.layer_norm(3 * x + 1, (8,)))
        if self.way == "quantised":
            return super().forward((x * 20).round() / 20)
        if self.way == "standardised":
            return functional.linear(x, self.weight - self.weight.mean(dim=1, keepdim=True), self.bias)
        if self.way == "scaled":
            return 1.001 * super().forward(x)
        if self.way == "one token":
            y = super().forward(x)
            return torch.cat([y[:1] + 0.01, y[1:]])
        if self.way == "tuple":
            return super().forward(x), None
        if self.way == "grouped":
            return functional.linear(x, self.weight[:4, :], self.bias[:4]).repeat(1, 2)
        return super().forward(x)


class Net(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.odd, self.last = nn.Linear(8, 8), layer, nn.Linear(8, 4)

    def forward(self, x):
        y = self.odd(torch.tanh(self.first(x)))
        return self.last(y[0] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("way", ["norm", "quantised", "standardised", "scaled", "one token", "tuple", "grouped"])
def test_other_functions_are_left_alone(way):
    torch.manual_seed(0)
    model, batch = Net(Odd(way)), torch.randn(16, 8)
    before = copy.deepcopy(model)
    report = prune_model(model, [batch], sparsity=0.5, solver="wanda")
    assert [layer.name for layer in report.layers] == ["first", "last"]
    assert [item.name for item in report.skipped] == ["odd"] and "columns · Wᵀ + b" in report.skipped[0].reason
    assert torch.equal(model.odd.weight, before.odd.weight)
    plan = plan_model(before, sparsity=0.5, solver="wanda", batches=[batch])
    assert [layer.name for layer in plan.layers] == ["first", "last"]


def hooked() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda _module, _args, output: output * 2)
    return layer


class SamePadding(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (1, 1, 1, 1)))


def test_output_hooks_and_padding_of_its_own_are_seen():
    layer = hooked()
    with borrowed(layer), OutputCheck(find_layers(Net(layer))[0]) as check:
        assert not check.failed
    net = Net(layer)
    layers, _ = find_layers(net)
    with borrowed(net), OutputCheck(layers) as check:
        check.run(net, read_batches([torch.randn(5, 8)])[0])
    assert list(check.failed) == ["odd"]
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), SamePadding(3, 4, 3))
    assert list(failures(conv, torch.randn(2, 2, 5, 5))) == ["1"]


@pytest.mark.parametrize("way", ["plain", "unbatched"])
def test_convolutions_pass(way):
    convs = [
        nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"),
        nn.Conv2d(3, 4, (1, 3), stride=2, dilation=(1, 2)),
    ]
    images = torch.randn(2, 9, 9) if way == "unbatched" else torch.randn(2, 2, 9, 9)
    assert failures(nn.Sequential(*convs), images) == {}


class Unusual(nn.Linear):
    """The same function by another product, whose bits differ."""

    def forward(self, x):
        return (x.flip(-1) @ self.weight.flip(-1).T + self.bias).contiguous()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rounding_is_no_difference(dtype):
    torch.manual_seed(1)
    model = nn.Sequential(Unusual(300, 40), Unusual(40, 7)).to(dtype)
    assert failures(model, torch.randn(500, 300, dtype=dtype) * torch.logspace(-3, 3, 300, dtype=dtype)) == {}


class Autocast(nn.Linear):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(x)


def test_autocast_inside_is_rounding():
    torch.manual_seed(1)
    assert failures(nn.Sequential(Autocast(64, 16), nn.ReLU()), torch.randn(100, 64)) == {}


class Attention(nn.Module):
    """Uses the weight of one layer as a tensor, and that of another one besides calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.both, self.fine = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x.to(self.fine.weight.dtype) + torch.zeros_like(self.fine.weight)[0]
        y = functional.linear(x, self.inner.weight.T.contiguous())
        return self.fine(self.both(y) + y @ self.both.weight)


def test_weights_that_are_used_as_tensors():
    assert failures(Attention(), torch.randn(5, 8)) == {"inner": NEVER_CALLED, "both": USED_BESIDES}
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    found = failures(encoder, torch.randn(2, 5, 8))
    assert found == {f"layers.{index}.self_attn.out_proj": NEVER_CALLED for index in (0, 1)}


class Sometimes(nn.Module):
    """Calls its second layer for negative batches only."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), second

    def forward(self, x):
        y = self.first(x)
        return self.second(y) if float(x.sum()) < 0 else y


def test_a_layer_that_the_first_batch_misses_is_checked_by_a_later_one():
    batch = torch.rand(6, 8)
    fine = prune_model(Sometimes(nn.Linear(8, 8)), [batch, -batch], sparsity=0.5, solver="wanda")
    assert [layer.name for layer in fine.layers] == ["first", "second"]
    odd = prune_model(Sometimes(Odd("scaled")), [batch, -batch], sparsity=0.5, solver="wanda")
    assert [layer.name for layer in odd.layers] == ["first"] and "columns" in odd.skipped[0].reason


def test_nothing_pruned_is_no_report():
    with pytest.raises(RelaxPruneError, match=r"got none: '0' is left alone .*columns"):
        prune_model(nn.Sequential(Odd("norm")), [torch.randn(4, 8)], sparsity=0.5)
    with pytest.raises(RelaxPruneError, match="batches must lead to a layer that can be pruned"):
        prune_model(Idle(), [torch.ones(2, 8)], sparsity=0.5)


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 8)

    def forward(self, x):
        return x
