"""New weights that correct the errors of earlier layers, and blocks that are tuned as a whole."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch
from torch import nn

from relaxprune.cli import main
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.request import PruneRequest
from relaxprune.pruning.tuning import parts, recipes

from ..command_line import arguments, interrupt
from ..recorders import BlockMemory
from ..tiny_models import padded_batches, tiny_model

DAMPING = 0.01
DENSE = PruneOptions(weights="refit", damping=DAMPING, correct=1.0, statistics=StatisticsOptions(shrinkage=0))


def read_by(model: nn.Module, name: str, batches) -> torch.Tensor:
    """Return what a module reads of all tokens that are no padding, (tokens, features) float64."""
    seen = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().double()))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    kept = [batch["attention_mask"].bool() for batch in batches]
    return torch.cat([tokens[real] for tokens, real in zip(seen, kept, strict=True)])


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {layer.name: layer.matrix().double() for layer in find_layers(model)[0]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(("collect", "share"), [("block", 1.0), ("groups", 0.3)])
def test_the_objective_is_the_distance_from_the_dense_model(family, collect, share):
    """Of a layer whose inputs come from finished blocks only, both streams can be made again from the two models."""
    dense, batches = tiny_model(family), padded_batches()
    model = copy.deepcopy(dense)
    options = PruneOptions(
        weights="refit", damping=DAMPING, correct=share, statistics=StatisticsOptions(collect=collect, shrinkage=0)
    )
    report = prune_model(model, batches, sparsity=0.5, options=options)
    assert {layer.loss.corrected for layer in report.layers} == {share}
    before, after = weights_of(dense), weights_of(model)
    checked = 0
    for layer in report.layers:
        if layer.inputs.gram != layer.name or not layer.name.endswith(("q_proj", "c_attn")):
            continue
        x, pruned = read_by(dense, layer.name, batches), read_by(model, layer.name, batches)
        wanted, got = ((1 - share) * pruned + share * x) @ before[layer.name].T, pruned @ after[layer.name].T
        ridge = DAMPING * pruned.square().mean() * (before[layer.name] - after[layer.name]).square().sum()
        assert layer.objective == pytest.approx(float((wanted - got).square().sum() / len(x) + ridge), rel=1e-4)
        assert layer.loss.dense_energy == pytest.approx(float(wanted.square().sum() / len(x)), rel=1e-4)
        assert layer.loss.residual >= -1e-6 * layer.loss.dense_energy and layer.lower_bound <= layer.objective
        if layer.block == 0:
            assert layer.loss.residual <= 1e-5 * layer.loss.dense_energy  # nothing is pruned before it
        else:
            checked += layer.loss.residual > 1e-4 * layer.loss.dense_energy
    assert checked == 2
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - {item.name for item in report.layers})


def test_the_model_s_own_weights_are_left_after_an_exception():
    model = tiny_model("llama")
    dense = copy.deepcopy(model.state_dict())

    def stop(event):
        if event.kind == "layer_done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, padded_batches(), sparsity=0.5, options=DENSE, on_event=stop)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, dense[name])]
    assert len(changed) == 1


@pytest.mark.parametrize("options", [DENSE, PruneOptions(weights="refit", correct=1.0, tune=2)])
def test_recorded_blocks_give_the_same_model(options):
    batches = padded_batches(4)
    model, again, half, keeper = *(tiny_model("llama") for _ in range(3)), BlockMemory()
    prune_model(model, batches, sparsity=0.5, options=options, recorder=keeper)
    for recorded in (keeper.records, {0: keeper.records[0]}):
        other = BlockMemory()
        other.records |= recorded
        target = again if len(recorded) > 1 else half
        report = prune_model(target, batches, sparsity=0.5, options=options, recorder=other)
        assert len(report.tunings) == (3 if options.tune else 0)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, target.state_dict()[name]), name


class Routed(nn.Module):
    """A block whose second layer reads the half of the tokens that the first layer chooses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.expert = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shown = inputs + self.first(inputs)  # (batch, tokens, width)
        flat = shown.flatten(0, 1)
        chosen = flat[:, 0].topk(len(flat) // 2).indices
        return shown + torch.zeros_like(flat).index_add(0, chosen, self.expert(flat[chosen])).view_as(shown)


class Chain(nn.Module):
    """Blocks between two layers."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(width, width), nn.Linear(width, width)
        self.blocks = nn.ModuleList(Routed(width) for _ in range(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = self.before(inputs)
        for block in self.blocks:
            inputs = block(inputs)
        return self.after(inputs)


@pytest.mark.parametrize("changes", [{"statistics": StatisticsOptions(collect="groups")}, {"exclude": ("*.first",)}])
def test_an_expert_by_itself_is_known_by_the_tokens_that_it_lacks(changes):
    torch.manual_seed(0)
    batches = [torch.randn(2, 20, 24) for _ in range(3)]
    report = prune_model(Chain(), batches, sparsity=0.5, options=dataclasses.replace(DENSE, **changes))
    shares = {layer.name: layer.loss.corrected for layer in report.layers}
    assert {share for name, share in shares.items() if "expert" in name} == {0.0} and shares["after"] == 1.0


class Between(nn.Module):
    """Blocks with something computed between them: they are not replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(24, 24)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.Tanh()) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = self.before(inputs)
        for block in self.blocks:
            inputs = block(inputs + 1)
        return inputs


def test_the_dense_model_is_dense_before_blocks_that_are_not_replayed_too():
    torch.manual_seed(0)
    dense, batches = Between(), [torch.randn(2, 40, 24) for _ in range(3)]
    model = copy.deepcopy(dense)
    report = prune_model(model, batches, sparsity=0.5, options=DENSE)
    assert report.propagation.startswith("rerun")
    dense, model = dense.requires_grad_(False), model.requires_grad_(False)
    x, pruned = (torch.cat([one.before(batch).flatten(0, 1) + 1 for batch in batches]) for one in (dense, model))
    layer, first = next(item for item in report.layers if item.name == "blocks.0.0"), dense.blocks[0][0].weight
    lost = x @ first.T - pruned @ model.blocks[0][0].weight.T
    ridge = DAMPING * pruned.square().mean() * (first - model.blocks[0][0].weight).square().sum()
    assert layer.objective == pytest.approx(float(lost.square().sum() / len(x) + ridge), rel=1e-4)


def test_layers_that_read_other_tokens_correct_nothing_and_say_so():
    torch.manual_seed(0)
    dense = Chain()
    batches = [torch.randn(2, 20, 24) for _ in range(3)]
    model = copy.deepcopy(dense)
    report = prune_model(model, batches, sparsity=0.5, options=DENSE)
    shares = {layer.name: layer.loss.corrected for layer in report.layers}
    assert {share for name, share in shares.items() if "expert" in name} == {0.0}
    assert {share for name, share in shares.items() if "expert" not in name} == {1.0}
    assert {"before", "after"} <= set(shares)  # outside of the blocks, the whole model is run for each
    residual = {layer.name: layer.loss.residual / layer.loss.dense_energy for layer in report.layers}
    assert abs(residual["before"]) < 1e-6 < 1e-3 < residual["after"] and residual["blocks.0.first"] > 1e-3
    last = next(layer for layer in report.layers if layer.name == "after")
    x, pruned = (
        torch.cat([body(part, batch) for batch in batches]) for part, body in ((dense, into_after), (model, into_after))
    )
    dense, model = dense.requires_grad_(False), model.requires_grad_(False)
    lost = x @ dense.after.weight.T - pruned @ model.after.weight.T
    ridge = DAMPING * pruned.square().mean() * (dense.after.weight - model.after.weight).square().sum()
    assert last.objective == pytest.approx(float(lost.square().sum() / len(x) + ridge), rel=1e-4)


def into_after(model: Chain, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        inputs = model.before(batch)
        for block in model.blocks:
            inputs = block(inputs)
    return inputs.flatten(0, 1)


@pytest.mark.parametrize(("family", "share"), [("llama", 0.5), ("llama", 0.0), ("gpt2", 0.0)])
def test_tuning_lowers_the_blocks_error_and_keeps_the_masks(family, share):
    batches = padded_batches(8, windows=4)
    flags = {name: index % 2 == 0 for index, (name, _) in enumerate(tiny_model(family).named_parameters())}
    plain, tuned = tiny_model(family), tiny_model(family)
    for name, parameter in tuned.named_parameters():
        parameter.requires_grad_(flags[name])
    options = PruneOptions(weights="refit", correct=share)
    before = prune_model(plain, batches, sparsity=0.6, options=options)
    report = prune_model(tuned, batches, sparsity=0.6, options=PruneOptions(weights="refit", correct=share, tune=4))
    assert {name: parameter.requires_grad for name, parameter in tuned.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in tuned.parameters())
    assert [item.block for item in report.tunings] == [0, 1, 2] and not before.tunings
    assert torch.equal(report.masks[report.layers[0].parameter], before.masks[before.layers[0].parameter])
    for item in report.tunings:
        assert item.held_out_after <= item.held_out_before and item.steps == 6 * item.epochs
    assert any(item.epochs and item.held_out_after < 0.99 * item.held_out_before for item in report.tunings)
    for layer in find_layers(tuned)[0]:
        if layer.parameter in report.masks:
            weight = layer.matrix()
            assert bool((weight[~report.masks[layer.parameter]] == 0).all()) and not weight.isnan().any()
            assert torch.equal(weight, report.weights[layer.parameter])
    assert "tuned blocks" in str(report)


@pytest.mark.parametrize("recipe", ["constant", "tm"])
@pytest.mark.parametrize("weights", ["keep", "refit"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_parts_of_blocks_are_tuned_one_after_the_other(family, weights, recipe):
    """Also where the solver leaves weights as they are."""
    batches, model = padded_batches(8, windows=4), tiny_model(family)
    options = PruneOptions(weights=weights, tune=2, tune_by="part", tune_recipe=recipe)
    report = prune_model(model, batches, sparsity=0.6, options=options)
    names = ["self_attn", "mlp"] if family == "llama" else ["attn", "mlp"]
    assert [(item.block, item.part) for item in report.tunings] == [(i, name) for i in range(3) for name in names]
    assert all(item.held_out_after <= item.held_out_before for item in report.tunings)
    assert any(item.epochs for item in report.tunings)
    if recipe == "constant":
        assert any(item.held_out_after < 0.99 * item.held_out_before for item in report.tunings)
    for layer in find_layers(model)[0]:
        if layer.parameter in report.masks:
            assert bool((layer.matrix()[~report.masks[layer.parameter]] == 0).all())
            assert torch.equal(layer.matrix(), report.weights[layer.parameter])
    assert "tuned parts of blocks" in str(report)


def test_the_first_part_is_tuned_towards_what_the_dense_part_puts_out():
    dense, model, batches = tiny_model("llama"), tiny_model("llama"), padded_batches(8)
    options = PruneOptions(tune=3, tune_by="part")
    found = prune_model(model, batches, sparsity=0.6, options=options).tunings[0]
    errors = []
    for number in (1, 5):
        got, wanted = (_put_out(one.model.layers[0].self_attn, one, batches[number]) for one in (model, dense))
        errors.append((wanted - got).square().sum(dim=1) / wanted.square().sum(dim=1))
    assert found.held_out_after == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)


def _put_out(part: nn.Module, model: nn.Module, batch) -> torch.Tensor:
    seen = []
    handle = part.register_forward_hook(lambda _module, _args, output: seen.append(output[0].detach().double()))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0][batch["attention_mask"].bool()]


def test_parts_in_a_list_are_its_elements():
    block = nn.ModuleDict({"inner": nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))])})
    model = nn.ModuleDict({"blocks": nn.ModuleList([block])})
    found = parts.parts_of(block, "blocks.0", find_layers(model)[0])
    assert [(part.name, len(part.layers)) for part in found] == [("inner.0", 1), ("inner.1", 2)]


def test_what_tuning_reports_is_the_error_of_the_first_block():
    """The first block's outputs can be made from the two models."""
    dense, batches = tiny_model("llama"), padded_batches(8)
    model = copy.deepcopy(dense)
    found = prune_model(model, batches, sparsity=0.6, options=PruneOptions(weights="refit", tune=3)).tunings[0]
    for numbers, error in (([1, 5], found.held_out_after), ([0, 2, 3, 4, 6, 7], found.error_after)):
        errors = []
        for number in numbers:
            wanted, got = (read_by(one, "model.layers.1.input_layernorm", [batches[number]]) for one in (dense, model))
            errors.append((wanted - got).square().sum(dim=1) / wanted.square().sum(dim=1))
        assert error == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "refit", "correct": 1.5}, r"correct must lie in \[0, 1\], got 1.5"),
        ({"correct": 0.5}, 'correct is 0.5, which is for weights="refit"'),
        ({"tune_by": "part"}, "tune_by is 'part', but tune is 0"),
        ({"tune_recipe": "tm"}, "tune_recipe is 'tm', but tune is 0"),
        ({"tune": 1, "tune_by": "layer"}, "tune_by must be"),
        ({"weights": "refit", "tune": -1}, "tune must be"),
        ({"weights": "refit", "tune": 1, "permute": True}, "got permute=True"),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneRequest.of(Target(sparsity=0.5), options=PruneOptions(**options))


def test_tuning_needs_a_batch_to_hold_out_and_blocks_of_their_own():
    with pytest.raises(RelaxPruneError, match="tune needs at least 2 batches"):
        prune_model(tiny_model("llama"), padded_batches(1), sparsity=0.5, options=PruneOptions(weights="refit", tune=1))

    options, batches = PruneOptions(weights="refit", tune=1), [torch.randn(2, 8, 24)] * 2
    model = Between()
    dense = copy.deepcopy(model.state_dict())
    with pytest.raises(RelaxPruneError, match="tune needs blocks that can be replayed"):
        prune_model(model, batches, sparsity=0.5, options=options)
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(RelaxPruneError, match=r"tune needs blocks with layers .* without a list of them"):
        prune_model(nn.Sequential(nn.Linear(24, 24), nn.Tanh()), batches, sparsity=0.5, options=options)
    experts = PruneOptions(weights="refit", tune=1, include=("*experts*",))
    with pytest.raises(RelaxPruneError, match="fused experts, alone"):
        prune_model(tiny_model("qwen3_moe"), padded_batches(4), sparsity=0.5, options=experts)


def test_tuning_that_gains_nothing_leaves_every_bit():
    """In float64, on batches of which one has no token that is not padding."""
    batches = padded_batches(6)
    batches[1]["attention_mask"].zero_()
    model, plain = tiny_model("llama").double(), tiny_model("llama").double()
    options = PruneOptions(weights="refit", include=("model.layers.0.*",))
    prune_model(plain, batches, sparsity=0.5, options=options)
    found = prune_model(model, batches, sparsity=0.5, options=dataclasses.replace(options, tune=1)).tunings[0]
    numbers = (found.error_before, found.error_after, found.held_out_before, found.held_out_after)
    assert all(0 < number < 1 for number in numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.TUNE_RECIPES, "constant", recipes.Recipe(1e3, cosine=False))  # too far to help
        worse = tiny_model("llama").double()
        report = prune_model(worse, batches, sparsity=0.5, options=dataclasses.replace(options, tune=1))
    assert report.tunings[0].epochs == 0
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in worse.state_dict().items())


@pytest.mark.parametrize("more", [("--refit", "--correct", "0.5"), ("--tune-by", "part")], ids=str)
def test_from_the_command_line_and_resumed(place, tmp_path, monkeypatch, more):
    words = (*more, "--tune", "2", "--windows", "66")  # two batches
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(arguments(place, whole, *words)) == 0
    record = json.loads((whole / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["tune"] == 2 and main(["verify", str(whole)]) == 0
    assert sorted({item["block"] for item in record["report"]["tunings"]}) == [0, 1, 2]
    assert "block by block" in (whole / "README.md").read_text()
    interrupt(monkeypatch, stopped, arguments(place, stopped, *words))
    assert main(arguments(place, stopped, *words, "--resume")) == 0
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
