"""Pruning whole models: exact masks, propagated errors, honest reports, and nothing else changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import NM, RelaxPruneError, lowered
from relaxprune.pruning.pipeline import prune_model

from ..recorders import BlockMemory
from ..tiny_models import DECODERS, padded_batches, tiny_model

QUICK = PruneOptions(max_iterations=12)


def inputs_of(model, name, batches):
    """All real tokens that a layer reads: (tokens, cols) float64."""
    layer = next(layer for layer in find_layers(model)[0] if layer.name == name)
    seen = []
    hook = layer.module.register_forward_pre_hook(lambda _module, args: seen.append(layer.columns(args[0])))
    with torch.no_grad():
        for batch in batches:
            model(**batch) if isinstance(batch, dict) else model(batch)
    hook.remove()
    if isinstance(batches[0], dict):
        masks = [batch["attention_mask"] != 0 for batch in batches]
        seen = [tokens[mask] for tokens, mask in zip(seen, masks, strict=True)]
    return torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in seen]).double()


def assert_zeros_follow_masks(before, after, report):
    """Kept entries keep their bits, pruned ones are +0.0, everything else is untouched."""
    layers = {layer.parameter: layer for layer in find_layers(after)[0]}
    old = {layer.parameter: layer.matrix() for layer in find_layers(before)[0]}
    for name, mask in report.masks.items():
        new = layers[name].matrix()
        assert torch.equal(new[mask], old[name][mask])
        assert not new[~mask].any() and not new[~mask].signbit().any()
    others = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        experts = f"{name}[0]" in layers  # held to their masks one by one
        assert name in report.masks or experts or torch.equal(parameter, others[name])


@pytest.mark.parametrize("family", [*DECODERS, "bert", "gemma3_vision"])
def test_families(family):
    model, batches = tiny_model(family), padded_batches(2)
    before = copy.deepcopy(model)
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert report.propagation == "replay"
    assert_zeros_follow_masks(before, model, report)
    assert all(torch.equal(mask.sum(1), torch.full((len(mask),), mask.shape[1] // 2)) for mask in report.masks.values())
    assert {layer.inputs.tokens for layer in report.layers if layer.kind != "Expert"} == {2 * 2 * 12 - 3}
    assert {layer.block for layer in report.layers} == {0, 1, 2}
    assert all(layer.lower_bound <= layer.objective <= layer.loss.dense_energy for layer in report.layers)
    assert all(layer.gap == layer.objective - layer.lower_bound for layer in report.layers)
    assert report.mean_wanda_ratio < 0.95
    parameters = {layer.parameter.partition("[")[0] for layer in report.layers}  # experts share one
    covered = {name.removesuffix(".weight") for name in parameters} | {item.name for item in report.skipped}
    assert {name.removesuffix(".weight") for name, p in model.named_parameters() if p.dim() >= 2} <= covered
    assert torch.isfinite(model(**batches[0]).logits).all()


def lost(layer, tokens, change):
    """The layer's error from its definition: tokens (tokens, cols), change (rows, cols), the Gram shrunk as it was."""
    share, energies = layer.inputs.shrinkage, tokens.square().mean(dim=0)
    own = float((change.square() * energies).sum())
    return (1 - share) * float((tokens @ change.T).square().sum(1).mean()) + share * own


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bert"])
def test_objectives_are_those_of_inputs_from_the_pruned_blocks(family):
    model, batches = tiny_model(family), padded_batches()
    dense = {layer.name: layer.matrix().double().clone() for layer in find_layers(model)[0]}
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    # The first layer of a block reads pruned blocks only, so the pruned model itself has the inputs it was solved on.
    firsts = [layer for layer in report.layers if "attn" in layer.name.lower() or "attention.self" in layer.name]
    firsts = [layer for layer in firsts if not any(part in layer.name for part in ("o_proj", "c_proj", "output"))]
    assert {layer.block for layer in firsts} == {0, 1, 2} and {layer.inputs.shrinkage for layer in firsts} == {0.2}
    for layer in firsts:
        tokens = inputs_of(model, layer.name, batches)
        change = dense[layer.name].masked_fill(report.masks[layer.parameter], 0.0)
        assert layer.objective == pytest.approx(lost(layer, tokens, change), rel=1e-5)
        assert layer.inputs.tokens == len(tokens)


def test_layers_that_read_the_same_tensor_share_a_gram():
    report = prune_model(tiny_model("llama"), padded_batches(2), sparsity=0.5, options=QUICK)
    first = {layer.name.split(".")[-1]: layer.inputs.gram.split(".")[-1] for layer in report.layers if layer.block == 0}
    assert first == {
        "q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "o_proj": "o_proj",
        "gate_proj": "gate_proj", "up_proj": "gate_proj", "down_proj": "down_proj",
    }  # fmt: skip


def test_the_same_run_gives_the_same_masks_bit_for_bit():
    runs = [prune_model(tiny_model("llama"), padded_batches(), sparsity=0.5, options=QUICK) for _ in range(2)]
    assert all(torch.equal(mask, runs[1].masks[name]) for name, mask in runs[0].masks.items())
    assert [layer.objective for layer in runs[0].layers] == [layer.objective for layer in runs[1].layers]


def test_another_batch_split_gives_nearly_the_same_objectives():
    tokens = torch.randint(3, 60, (8, 12))
    one = prune_model(tiny_model("llama"), [tokens], sparsity=0.5, options=QUICK)
    many = prune_model(tiny_model("llama"), tokens.split(3), sparsity=0.5, options=QUICK)
    for a, b in zip(one.layers, many.layers, strict=True):
        assert a.inputs.tokens == b.inputs.tokens == 96
        assert a.objective == pytest.approx(b.objective, rel=5e-3)


def test_bfloat16_stays_bfloat16():
    model = tiny_model("llama", torch.bfloat16)
    before = copy.deepcopy(model)
    report = prune_model(model, padded_batches(2), pattern="2:4", options=QUICK)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_zeros_follow_masks(before, model, report)
    for mask in report.masks.values():
        assert bool((mask.view(len(mask), -1, 4).sum(2) == 2).all())
    assert {layer.requested_sparsity for layer in report.layers} == {0.5}


def test_resuming_gives_the_identical_result():
    recorder, model = BlockMemory(), tiny_model("llama")
    whole = prune_model(model, padded_batches(), sparsity=0.5, options=QUICK, recorder=recorder)
    assert recorder.solved == [0, 1, 2]
    resumed, again = BlockMemory({0: recorder.records[0], 1: recorder.records[1]}), tiny_model("llama")
    events = []
    report = prune_model(again, padded_batches(), sparsity=0.5, options=QUICK, recorder=resumed, on_event=events.append)
    assert resumed.solved == [2]
    assert all(torch.equal(mask, report.masks[name]) for name, mask in whole.masks.items())
    assert all(map(torch.equal, model.state_dict().values(), again.state_dict().values()))
    assert [layer.objective for layer in report.layers] == [layer.objective for layer in whole.layers]
    assert [event.kind for event in events].count("layer_done") == 21
    assert [event.kind for event in events].count("layer_start") == 7


def test_a_continued_run_counts_the_time_of_its_earlier_sessions():
    recorder = BlockMemory()
    prune_model(tiny_model("llama"), padded_batches(1), sparsity=0.5, solver="wanda", recorder=recorder)
    recorder.records[1].seconds.update(solve=1000.0, total=2000.0)
    del recorder.records[2]
    report = prune_model(tiny_model("llama"), padded_batches(1), sparsity=0.5, solver="wanda", recorder=recorder)
    assert 1000 < report.seconds["solve"] < 1100 and 2000 < report.seconds["total"] < 2100
    assert recorder.records[2].seconds["solve"] > 1000


def test_a_record_of_another_block_is_refused():
    recorder = BlockMemory()
    prune_model(tiny_model("llama"), padded_batches(1), sparsity=0.5, options=QUICK, recorder=recorder)
    with pytest.raises(RelaxPruneError, match="record of block 0"):
        prune_model(
            tiny_model("llama"), padded_batches(1), sparsity=0.5, recorder=BlockMemory({0: recorder.records[1]})
        )


def test_events_in_order():
    events = []
    prune_model(tiny_model("opt"), padded_batches(1), sparsity=0.5, solver="wanda", on_event=events.append)
    kinds = [event.kind for event in events if event.block == 1]
    assert kinds == ["block_start", *["layer_start", "layer_done"] * 6, "block_done"]
    assert [event.layer_index for event in events if event.kind == "layer_done"] == list(range(1, 19))
    assert {(event.blocks, event.layers) for event in events} == {(3, 18)}
    assert all((event.report is not None) == (event.kind == "layer_done") for event in events)


def test_batches_are_read_once_and_may_be_generated():
    report = prune_model(tiny_model("llama"), (batch for batch in padded_batches(2)), sparsity=0.5, solver="wanda")
    assert len(report.layers) == 21 and report.solver == "wanda"
    assert {layer.wanda_ratio for layer in report.layers} == {1.0}
    windows = torch.randint(3, 60, (3, 12))
    assert prune_model(tiny_model("llama"), windows, sparsity=0.5, solver="wanda").layers[0].inputs.tokens == 36


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sparsity": 0.5, "solver": "fv"}, "fw"),
        ({"sparsity": 0.5, "annael": False}, "anneal"),
        ({"pattern": "3:7"}, "q_proj"),
        ({"sparsity": 0.5, "solver": "enumerate"}, r"q_proj' of shape \(32, 32\)"),
        ({"sparsity": 0.5, "precision": "tf32"}, 'precision is "tf32", which cpu does not support'),
        ({}, "exactly one"),
        ({"sparsity": 0.5, "options": PruneOptions(exclude=("nothing*",))}, "nothing"),
    ],
)
def test_wrong_input_is_refused_before_any_batch_is_read(arguments, words, monkeypatch):
    monkeypatch.setattr(lowered, "_has_tf32", lambda device: False)

    def never():
        raise AssertionError("read a batch")
        yield

    with pytest.raises(RelaxPruneError, match=words):
        prune_model(tiny_model("llama"), never(), **arguments)


def test_the_model_is_given_back_after_an_error():
    model = tiny_model("llama").train()
    state = torch.get_rng_state()

    def stop(event):
        if event.kind == "layer_done" and event.block == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, padded_batches(1), sparsity=0.5, solver="wanda", on_event=stop)
    assert all(module.training for module in model.modules()) and model.config.use_cache
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nan_activations_name_layer_and_batch():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = torch.nan
    batches = [torch.randint(3, 60, (2, 8)) for _ in range(3)]
    batches[2][1, 5] = 63
    with pytest.raises(RelaxPruneError, match=r"layer 'model.layers.0.self_attn.q_proj' in batch 2 contain NaN"):
        prune_model(model, batches, sparsity=0.5, options=QUICK)


def test_layers_called_several_times_share_one_gram_and_say_so():
    model, batches = tiny_model("albert"), padded_batches(2)
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert "more than once" in report.propagation
    assert {layer.inputs.calls for layer in report.layers} == {3}
    assert {layer.inputs.tokens for layer in report.layers} == {3 * 45}


def plain_network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding="same"), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten(),
        nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 8),
    )  # fmt: skip


def test_a_plain_network_is_pruned_layer_by_layer():
    model, batches = plain_network(), list(torch.randn(3, 20, 2, 8, 8))
    dense = {layer.name: layer.matrix().double().clone() for layer in find_layers(model)[0]}
    before = copy.deepcopy(model)
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert [(layer.name, layer.kind, layer.block) for layer in report.layers] == [
        ("0", "Conv2d", 0), ("2", "Conv2d", 1), ("4", "Linear", 2), ("6", "Linear", 3),
    ]  # fmt: skip
    assert_zeros_follow_masks(before, model, report)
    for layer in report.layers:  # each one solved on what the pruned layers before it put out
        tokens = inputs_of(model, layer.name, batches)
        change = dense[layer.name].masked_fill(report.masks[layer.parameter], 0.0)
        assert layer.objective == pytest.approx(lost(layer, tokens, change), rel=1e-5)
    assert report.propagation == "rerun" and report.skipped == []


def test_a_plain_network_can_be_resumed():
    batches, recorder = list(torch.randn(2, 20, 2, 8, 8)), BlockMemory()
    whole = prune_model(plain_network(), batches, sparsity=0.5, options=QUICK, recorder=recorder)
    del recorder.records[2], recorder.records[3]
    report = prune_model(plain_network(), batches, sparsity=0.5, options=QUICK, recorder=recorder)
    assert recorder.solved == [0, 1, 2, 3, 2, 3]
    assert all(torch.equal(mask, report.masks[name]) for name, mask in whole.masks.items())


class Branches(nn.Module):
    """Blocks between a stem and a head, one block and one layer that no batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))
        self.idle = nn.Linear(8, 8)

    def forward(self, x):
        x = self.blocks[2](self.blocks[0](self.stem(x)))
        return self.head(x)


def test_what_no_batch_reaches_is_listed_and_never_covered():
    model, batches = Branches(), list(torch.randn(2, 30, 8))
    before = copy.deepcopy(model)
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert {(item.name, item.reason) for item in report.skipped} == {
        ("blocks.1.0", "no batch reached it"), ("idle", "no batch reached it"),
    }  # fmt: skip
    assert [layer.name for layer in report.layers] == ["stem", "blocks.0.0", "blocks.2.0", "head"]
    assert_zeros_follow_masks(before, model, report)
    for layer in report.layers:
        tokens = inputs_of(model, layer.name, batches)
        dense = next(item for item in find_layers(before)[0] if item.name == layer.name).matrix().double()
        change = dense.masked_fill(report.masks[layer.parameter], 0.0)
        assert layer.objective == pytest.approx(lost(layer, tokens, change), rel=1e-5)


def test_blocks_that_cannot_be_replayed_are_pruned_by_running_the_model():
    class Between(Branches):
        def forward(self, x):
            for block in self.blocks:
                x = torch.relu(block(x)) + x
            return x

    model, batches = Between(), list(torch.randn(2, 30, 8))
    before = copy.deepcopy(model)
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert report.propagation.startswith("rerun: a block reads something")
    for layer in report.layers:
        tokens = inputs_of(model, layer.name, batches)
        dense = next(item for item in find_layers(before)[0] if item.name == layer.name).matrix().double()
        change = dense.masked_fill(report.masks[layer.parameter], 0.0)
        assert layer.objective == pytest.approx(lost(layer, tokens, change), rel=1e-5)


def test_the_output_head_when_it_is_named():
    model = tiny_model("llama")
    options = PruneOptions(include=("lm_head", "*.2.mlp.down_proj"), max_iterations=12)
    report = prune_model(model, padded_batches(2), sparsity=0.5, options=options)
    assert [(layer.name, layer.block) for layer in report.layers] == [
        ("model.layers.2.mlp.down_proj", 2),
        ("lm_head", 3),
    ]


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_everything_and_nothing(sparsity):
    model = tiny_model("llama")
    report = prune_model(model, padded_batches(1), sparsity=sparsity)
    assert report.sparsity == sparsity
    assert all(
        layer.relative_error == pytest.approx(sparsity) for layer in report.layers if layer.loss.dense_energy > 0
    )


def test_one_polytope_for_all_layers():
    report = prune_model(tiny_model("phi3"), padded_batches(1), polytope=NM(1, 4), options=QUICK)
    assert {layer.sparsity for layer in report.layers} == {0.75}
    assert report.polytope == {"polytope": NM(1, 4).to_dict()}


def test_one_window_of_one_token():
    report = prune_model(tiny_model("llama"), [torch.tensor([[5]])], sparsity=0.5, options=QUICK)
    assert {layer.inputs.tokens for layer in report.layers} == {1}


def test_every_device(device):
    model = tiny_model("llama").to(device)
    report = prune_model(model, padded_batches(2), sparsity=0.5, options=QUICK)
    assert {parameter.device.type for parameter in model.parameters()} == {device.type}
    assert {mask.device.type for mask in report.masks.values()} == {"cpu"}
