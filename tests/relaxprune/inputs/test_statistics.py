"""Which layers share a Gram, decided by the tensors that they read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relaxprune.inputs.layer_listener import LayerListener
from relaxprune.inputs.statistics import StatisticsCollector
from relaxprune.models.layers import find_layers
from relaxprune.problems import RelaxPruneError


class Shares(nn.Module):
    """q and k read one tensor, v reads an equal copy of it, o reads something else."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4) for _ in range(4))
        self.split = False

    def forward(self, x):
        k_input = x + 1 if self.split else x
        return self.o(self.q(x) + self.k(k_input) + self.v(input=x.clone()))


def collect(model, *batches, kept=None):
    collector = StatisticsCollector(find_layers(model)[0])
    with torch.no_grad():
        for number, batch in enumerate(batches):
            with collector.listening(number, kept):
                model(batch)
    return collector


def partition(collector):
    return sorted("".join(layer.name for layer in group.layers) for group in collector.groups)


def gram_of(collector, name):
    group = next(group for group in collector.groups if name in [layer.name for layer in group.layers])
    return group.accumulator.gram()


def second_moment(*tensors):
    tokens = torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]).double()
    return (tokens.T @ tokens / len(tokens)).float()


def test_layers_share_by_identity_not_by_value():
    collector = collect(Shares(), torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert partition(collector) == ["o", "qk", "v"]
    torch.testing.assert_close(gram_of(collector, "q"), gram_of(collector, "v"))
    assert [group.accumulator.tokens for group in collector.groups] == [12, 12, 12]


def test_each_group_is_multiplied_once_per_pass(monkeypatch):
    counted = []
    from relaxprune.inputs.gram_accumulator import GramAccumulator

    add = GramAccumulator.add
    monkeypatch.setattr(GramAccumulator, "add", lambda self, *a, **k: (counted.append(k["layer"]), add(self, *a, **k)))
    collect(Shares(), torch.randn(2, 3, 4))
    assert counted == ["q", "v", "o"]


def test_a_group_splits_when_a_batch_says_so():
    model = Shares()
    collector = StatisticsCollector(find_layers(model)[0])
    one, two, three = torch.randn(3, 2, 3, 4)
    with torch.no_grad():
        for number, (batch, split) in enumerate([(one, False), (two, True), (three, False)]):
            model.split = split
            with collector.listening(number, None):
                model(batch)
    assert partition(collector) == ["k", "o", "q", "v"]
    torch.testing.assert_close(gram_of(collector, "q"), second_moment(one, two, three))
    torch.testing.assert_close(gram_of(collector, "k"), second_moment(one, two + 1, three))


class Changes(nn.Module):
    """The two layers read the same memory, but not the same values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = x + 1
        y = self.a(x)
        return y + self.b(x.mul_(2))


def test_inputs_changed_in_place_are_refused():
    with pytest.raises(RelaxPruneError, match="layer 'a' is changed in place"):
        collect(Changes(), torch.randn(2, 4))


class Frees(nn.Module):
    """The first input is freed before the second is made, at the same address as a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, x):
        return sum(layer(x * number).sum() for number, layer in enumerate(self.layers))


def test_memory_that_is_used_again_is_another_tensor():
    collector = collect(Frees(), torch.randn(32, 64))
    assert len(collector.groups) == 6


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle = nn.Linear(4, 4), nn.Linear(5, 3)

    def forward(self, x):
        return self.shared(self.shared(x))


def test_all_calls_of_a_layer_count_into_one_gram():
    model, batch = Loops(), torch.randn(3, 4)
    collector = collect(model, batch)
    assert collector.calls == {"shared": 2, "idle": 0}
    torch.testing.assert_close(gram_of(collector, "shared"), second_moment(batch, model.shared(batch).detach()))


def test_layers_that_are_not_reached_have_no_gram():
    collector = collect(Loops(), torch.randn(3, 4))
    assert [group.accumulator for group in collector.groups if group.layers[0].name == "idle"] == [None]
    assert collector.order == ["shared"]


def test_grouping_without_products():
    model = Shares()
    collector = LayerListener(find_layers(model)[0])
    with torch.no_grad(), collector.listening(0, None):
        model(torch.randn(2, 4))
    assert partition(collector) == ["o", "qk", "v"]
    assert all(group.accumulator is None for group in collector.groups)
    assert collector.order == ["q", "k", "v", "o"]


def test_convolutions_share_only_with_equal_geometry():
    class Convs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 3, padding=1)
            self.c = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x)

    collector = collect(Convs(), torch.randn(2, 3, 8, 8))
    assert partition(collector) == ["ab", "c"]
    assert sorted(group.accumulator.tokens for group in collector.groups) == [2 * 6 * 6, 2 * 8 * 8]


def test_nan_names_the_layer_and_the_batch():
    bad = torch.randn(2, 4)
    bad[0, 0] = torch.nan
    with pytest.raises(RelaxPruneError, match="layer 'q' in batch 1"):
        collect(Shares(), torch.randn(2, 4), bad)


def test_hooks_are_gone_after_an_exception():
    model = Shares()
    collector = StatisticsCollector(find_layers(model)[0])
    with pytest.raises(KeyError), collector.listening(0, None):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in model.modules())
