"""Recorded blocks stand in for the model, bit for bit, or say why they cannot."""

from __future__ import annotations

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
