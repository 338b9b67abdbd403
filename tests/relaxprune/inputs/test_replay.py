"""Recorded blocks stand in for the model, bit for bit, or say why they cannot."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import nn

from relaxprune.inputs.batches import read_batches, run_model
from relaxprune.inputs.replay import Link, record
from relaxprune.inputs.replay_proof import record_all
from relaxprune.inputs.tree import Slot, map_tree
from relaxprune.models.blocks import find_blocks
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.pruning.pipeline import prune_model

from ..tiny_models import DECODERS, padded_batches, tiny_model


def recorded(model, batches):
    layers, _ = find_layers(model)
    blocks = find_blocks(model, layers)
    inside = [[layer for layer in layers if blocks.index_of(layer) == index] for index in range(len(blocks.modules))]
    read = read_batches(batches)
    tapes, reason = record_all(model, blocks.modules, inside, read)
    return blocks.modules, read, tapes, reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*DECODERS, "bert", "gemma3_vision"])
def test_a_replayed_dense_model_gives_its_own_logits(family, dtype):
    model = tiny_model(family, dtype)
    with borrowed(model):
        blocks, batches, tapes, reason = recorded(model, padded_batches())
        assert reason == ""
        for batch, tape in zip(batches, tapes, strict=True):
            last = tape.order[-1]
            for index in tape.order[:-1]:
                tape.advance(index, blocks[index])
            replayed = tape.run(last, blocks[last])[0]
            expected = run_model(model, batch).logits
            hook = blocks[last].register_forward_hook(
                lambda _module, _args, output, replayed=replayed: (
                    replayed if isinstance(output, torch.Tensor) else (replayed, *output[1:])
                )
            )
            # The blocks get nonsense, so the logits can come from the replayed states only.
            scramble = blocks[0].register_forward_pre_hook(lambda _module, args: (args[0].flip(-1), *args[1:]))
            logits = run_model(model, batch).logits
            hook.remove()
            scramble.remove()
            assert torch.equal(logits, expected)


def leaves_of(tape, index, name):
    """The recorded tensors of one keyword argument of one block."""
    call = tape.calls[index]
    slots = []
    map_tree(call.skeleton[1][name], Slot, slots.append)
    return [call.leaves[slot.index] for slot in slots]


@pytest.mark.parametrize("name", ["attention_mask", "position_embeddings"])
def test_gemma3_blocks_get_their_own_masks_and_rotary_values(name):
    model = tiny_model("gemma3")
    with borrowed(model):
        _, _, tapes, _ = recorded(model, padded_batches())
    sliding, full, again = (leaves_of(tapes[1], index, name) for index in range(3))
    assert sliding and full
    assert all(map(torch.equal, sliding, again))
    assert not any(map(torch.equal, sliding, full))


def test_the_cache_is_off():
    model = tiny_model("gemma3")
    with borrowed(model):
        _, _, tapes, _ = recorded(model, padded_batches())
        assert all(call.skeleton[1].get("past_key_values") is None for call in tapes[0].calls.values())


def test_equal_constants_are_kept_once():
    model = tiny_model("llama")
    tokens = [torch.randint(0, 60, (2, 10)) for _ in range(3)]
    with borrowed(model):
        _, _, tapes, _ = recorded(model, tokens)
    constants = {
        id(leaf) for tape in tapes for call in tape.calls.values() for leaf in call.leaves if not isinstance(leaf, Link)
    }
    rotary = 2
    hidden = len(tapes)
    positions = 1
    assert len(constants) <= rotary + hidden + positions


def test_states_are_freed_on_the_way():
    model = tiny_model("llama")
    with borrowed(model):
        blocks, _, tapes, _ = recorded(model, padded_batches(count=2))
        first = weakref.ref(next(leaf for leaf in tapes[0].calls[0].leaves if leaf.dim() == 3))
        tapes[0].advance(0, blocks[0])
        assert list(tapes[0].values) == [Link(0, 0)]
        tapes[0].advance(1, blocks[1])
        assert list(tapes[0].values) == [Link(1, 0)]
        assert first() is None
        tapes[0].advance(2, blocks[2])
        assert not tapes[0].values and not tapes[0].calls


def test_the_output_head_runs_for_the_first_batch_only():
    model, calls = tiny_model("llama"), []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    with borrowed(model):
        recorded(model, padded_batches(count=4))
    assert len(calls) == 1


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x, extra=None, overwrite=False):
        if overwrite:
            x.add_(1)
        return self.linear(x) + (0 if extra is None else extra)


class Stack(nn.Module):
    """Three blocks, put together in a way of choice."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.way = way

    def forward(self, x):
        start = x
        order = {"backwards": (2, 1, 0), "twice": (0, 1, 2, 0), "skips": (0, 2)}.get(self.way, (0, 1, 2))
        for index in order:
            if self.way == "between":
                x = torch.relu(self.blocks[index](x))
            elif self.way == "computed extra":
                x = self.blocks[index](x, extra=x.detach().cos())
            elif self.way == "constant extra":
                x = self.blocks[index](x, extra=start)
            elif self.way == "in place":
                x = self.blocks[index](x).add_(1)
            elif self.way == "own input":
                x = self.blocks[index](x, overwrite=True)
            elif self.way == "nothing":
                x = x + 1
            else:
                x = self.blocks[index](x)
        return x


@pytest.mark.parametrize("way", ["plain", "backwards", "skips", "constant extra"])
def test_chains_can_be_replayed(way):
    model, batch = Stack(way), torch.randn(4, 6)
    with borrowed(model):
        blocks, _, tapes, reason = recorded(model, [batch, batch * 2])
        assert reason == ""
        for index in tapes[1].order[:-1]:
            tapes[1].advance(index, blocks[index])
        last = tapes[1].order[-1]
        assert torch.equal(tapes[1].run(last, blocks[last])[0], model(batch * 2))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("between", "computed between the blocks"),
        ("computed extra", "computed between the blocks"),
        ("in place", "bit for bit"),
        ("own input", "changes its inputs"),
        ("twice", "more than once"),
        ("nothing", "reaches no block"),
    ],
)
def test_what_is_no_chain_says_why(way, reason):
    model = Stack(way)
    with borrowed(model):
        _, _, tapes, why = recorded(model, [torch.randn(4, 6)])
    assert tapes == [] and reason in why


def test_hooks_are_gone_after_an_exception():
    model = Stack("plain")
    with pytest.raises(RuntimeError), borrowed(model):
        record(model, list(model.blocks), read_batches([torch.randn(4, 5)])[0])
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


class Sharing(nn.Module):
    """A block that hands its first block's values past the chain, in a way of choice."""

    def __init__(self, first: bool, way: str, shelf: list) -> None:
        super().__init__()
        self.first, self.way, self.shelf = first, way, shelf
        self.v, self.o = nn.Linear(6, 6), nn.Linear(12, 6)

    def forward(self, x, shared):
        values = self.v(x)
        if self.way == "attribute":
            if self.first:
                self.shelf[:] = [values]
            other = self.shelf[0]
        elif self.way == "number":
            if self.first:
                self.shelf[:] = [float(values.sum())]
            other = values * self.shelf[0]
        elif self.way == "growing":
            self.shelf.append(values)
            other = torch.stack(self.shelf).sum(dim=0)
        elif self.way == "object":
            if self.first:
                shared.values = values
            other = shared.values
        else:
            if self.first:
                shared["values"] = values
            other = shared["values"]
        return x + self.o(torch.cat([values, other], dim=-1))


class Shelf:
    """Something that no tree of arguments opens."""


class Bypass(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, shelf = way, []
        self.layers = nn.ModuleList(Sharing(index == 0, way, shelf) for index in range(3))

    def forward(self, x):
        shared = Shelf() if self.way == "object" else {}
        if self.way == "growing":
            self.layers[0].shelf.clear()
        for layer in self.layers:
            x = layer(x, shared)
        return x


def objective_of(dense, model, report, name, batches):
    """What a layer of the second block loses on what it reads once the first block is pruned."""
    dense = copy.deepcopy(dense)
    dense.layers[0].load_state_dict(model.layers[0].state_dict())
    layer, seen = dense.get_submodule(name), []
    layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            dense(batch)
    inputs = torch.cat(seen).double()
    lost = (layer.weight.detach() * ~report.masks[f"{name}.weight"]).double()
    return float((inputs @ lost.T).square().sum() / len(inputs))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("way", ["dict", "attribute", "number", "growing", "object"])
def test_values_that_bypass_the_blocks_are_propagated(way, count):
    torch.manual_seed(0)
    dense, batches = Bypass(way), [torch.randn(40, 6) for _ in range(count)]
    model = copy.deepcopy(dense)
    report = prune_model(model, batches, sparsity=0.5, solver="wanda")
    item = next(item for item in report.layers if item.name == "layers.1.o")
    assert item.objective == pytest.approx(objective_of(dense, model, report, item.name, batches), rel=1e-4)
    assert way == "object" or report.propagation.startswith("rerun: ")


class Marked(nn.Module):
    """A model that leaves its padding mask where blocks find it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MaskedBlock(self.__dict__) for _ in range(2))

    def forward(self, input_embeds, attention_mask):
        self.__dict__["mask"] = attention_mask
        for block in self.blocks:
            input_embeds = block(input_embeds)
        return input_embeds


class MaskedBlock(nn.Module):
    def __init__(self, shelf: dict) -> None:
        super().__init__()
        self.linear, self.shelf = nn.Linear(6, 6), shelf

    def forward(self, x):
        return x + self.linear(x * self.shelf["mask"].unsqueeze(-1))


def test_a_batch_unlike_the_first_is_compared():
    mask = torch.ones(2, 4)
    padded = mask.clone()
    padded[1, 2:] = 0
    model = Marked()
    batches = [{"input_embeds": torch.randn(2, 4, 6), "attention_mask": one} for one in (mask, mask, padded)]
    with borrowed(model):
        _, _, tapes, reason = recorded(model, batches)
    assert not tapes and "bit for bit" in reason


class Reused(nn.Module):
    """One layer in several places."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, shared = way, nn.Linear(6, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        for index in {"two blocks": (0, 1), "own block": (0, 0)}.get(way, (0,)):
            self.blocks[index].append(shared)
        if way == "outside":
            self.shared = shared

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.shared(x) if self.way == "outside" else x


@pytest.mark.parametrize(
    ("way", "calls", "propagation"), [("two blocks", 2, "rerun"), ("outside", 2, "rerun"), ("own block", 2, "replay")]
)
def test_every_call_of_a_layer_counts(way, calls, propagation):
    torch.manual_seed(0)
    model, batches = Reused(way), [torch.randn(30, 6) for _ in range(2)]
    report = prune_model(model, batches, sparsity=0.5, solver="wanda")
    assert report.propagation.startswith(propagation)
    item = next(item for item in report.layers if item.inputs.calls > 1)
    assert (item.inputs.calls, item.inputs.tokens) == (calls, calls * 60)


class Failing(nn.Linear):
    def forward(self, x):
        if not torch.equal(self.weight, self.before):
            raise KeyError("weights")
        return super().forward(x)


def test_weights_are_back_after_an_exception():
    model = nn.Module()
    model.blocks = nn.ModuleList(Failing(6, 6) for _ in range(2))
    for block in model.blocks:
        object.__setattr__(block, "before", block.weight.detach().clone())
    model.forward = lambda x: model.blocks[1](model.blocks[0](x))
    with pytest.raises(KeyError), borrowed(model):
        recorded(model, [torch.randn(3, 6)])
    assert all(torch.equal(block.weight, block.before) for block in model.blocks)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
