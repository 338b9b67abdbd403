"""Choosing the masks of a whole model again, by its gradient."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from relaxprune.cli import main
from relaxprune.inputs.batches import read_batches
from relaxprune.inputs.streams import ONE_STREAM
from relaxprune.models.blocks import find_blocks
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.planner import make_plan, plan_model
from relaxprune.pruning.request import PruneRequest
from relaxprune.pruning.tuning import reselector
from relaxprune.pruning.tuning.held_out import Windows
from relaxprune.pruning.tuning.local_model import local_models
from relaxprune.pruning.tuning.predictions import DensePredictions
from relaxprune.pruning.tuning.reselector import Reselector
from relaxprune.pruning.tuning.whole_model import WholeModel
from relaxprune.runs.run_folder import RunFolder
from relaxprune.solving.solving import solve

from ..command_line import arguments, interrupting, only_sentence
from ..recorders import RefinedMemory
from ..tiny_models import padded_batches, tiny_model

BATCHES = padded_batches(4, windows=5, length=24)
ONCE = {"solver": "wanda", "options": PruneOptions(reselect=1)}


@pytest.fixture(autouse=True)
def one_trust(monkeypatch):
    """Try one size of steps, which is enough to see what becomes of it."""
    monkeypatch.setattr(reselector, "TRUST", 16.0)
    monkeypatch.setattr(reselector, "TRIALS", 1)


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def pruned_whole(family: str) -> tuple[WholeModel, list, dict[str, torch.Tensor]]:
    """Return a pruned model in float64 with what it predicted when dense, its layers and their dense weights."""
    model = tiny_model(family).double()
    layers = find_layers(model)[0]
    blocks = find_blocks(model, layers)
    layers = [layer for layer in layers if blocks.index_of(layer) is not None]
    with borrowed(model):
        windows = Windows.of(read_batches(BATCHES))
        predictions = DensePredictions(model, windows, [layer.weight for layer in layers], blocks.name)
    dense = {layer.parameter: layer.matrix().clone() for layer in layers}
    prune_model(model, BATCHES, sparsity=0.5, solver="wanda")
    return WholeModel(model, blocks, predictions), layers, dense


def mean_distance(whole: WholeModel) -> torch.Tensor:
    """Return the mean over tokens of the divergence on the windows that are tuned on, with gradients."""
    found = [whole.predictions.distance(number) for number in whole.tuned]
    return torch.stack([distance for distance, _ in found]).sum() / sum(count for _, count in found)


@pytest.mark.parametrize(
    "family",
    ["gpt2", *(pytest.param(name, marks=pytest.mark.long) for name in ("llama", "qwen3_moe"))],
)
def test_the_gradient_is_that_of_the_whole_model_and_the_model_holds_for_small_steps(family):
    whole, layers, dense = pruned_whole(family)
    with borrowed(whole.model):
        models = local_models(whole, layers, ONE_STREAM, 0.2, 0)
        with torch.enable_grad():
            slopes = torch.autograd.grad(mean_distance(whole), [layer.weight for layer in layers], allow_unused=True)
        for layer, slope in zip(layers, slopes, strict=True):
            if layer.parameter in models:
                own = layer.as_matrix(slope if layer.expert is None else slope[layer.expert])
                assert float((models[layer.parameter].slope - own).abs().max()) < 1e-5 * float(own.abs().max())
                assert bool((own[layer.matrix() == 0] != 0).any()), "pruned weights have gradients"
        if family == "qwen3_moe":
            return  # other experts may get a token, which is no small change
        pulls = {name: float((model.slope * dense[name]).sum().abs()) for name, model in models.items()}
        layer = next(layer for layer in layers if layer.parameter == max(pulls, key=pulls.__getitem__))
        model, before = models[layer.parameter], layer.matrix().clone()
        start, errors = float(mean_distance(whole)), []
        for share in (0.1, 0.01):
            new = before + share * (dense[layer.parameter] - before)
            layer.write(torch.ones_like(new, dtype=torch.bool), new)
            errors.append(abs(float(mean_distance(whole)) - start - model.change(before, new)) / share)
            layer.write(before != 0, before)
        assert errors[1] < 0.3 * errors[0], "what the model leaves out is of second order"


def test_the_problem_s_objective_is_the_model():
    whole, layers, dense = pruned_whole("llama")
    with borrowed(whole.model):
        models = local_models(whole, layers[:2], ONE_STREAM, 0.2, 0)
    layer = layers[0]
    model, before, values = models[layer.parameter], layer.matrix(), dense[layer.parameter]
    polytope = Target(sparsity=0.5).polytope_of(layer.name, layer.shape)
    for trust in (1.0, 4.0):
        problem = model.problem(before, values, trust, polytope)
        masks = [before != 0, solve(problem, "swap", start=before != 0).mask, solve(problem, "magnitude").mask]
        objectives = [model.unit(trust) * problem.objective(mask) for mask in masks]
        changes = [model.change(before, torch.where(mask, values, 0.0), trust) for mask in masks]
        assert changes[0] == 0 and changes[1] < 0
        for objective, change in zip(objectives, changes, strict=True):
            assert objective - objectives[0] == pytest.approx(change, rel=1e-5, abs=1e-9)


def test_the_probes_have_the_curvature_of_the_divergence():
    """The mean over many draws of the squared gradient is the second derivative where both models agree."""
    model = tiny_model("llama").double()
    weight = model.model.layers[1].mlp.down_proj.weight
    with borrowed(model):
        predictions = DensePredictions(model, Windows.of(read_batches(BATCHES[:1])), [])
        direction, drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double(), []
        for seed in range(100):
            with torch.enable_grad():
                weight.requires_grad_(True)
                slope = torch.autograd.grad(predictions.probe(0, seed), weight)[0]
            drawn.append(float((slope * direction).sum()) ** 2)
        with torch.no_grad():
            step = 1e-3
            weight.add_(direction, alpha=step)
            curvature = 2 * float(predictions.distance(0)[0]) / step**2
    found = torch.tensor(drawn)
    assert abs(float(found.mean()) - curvature) < 4 * float(found.std()) / len(drawn) ** 0.5


@pytest.mark.parametrize(
    ("family", "amount", "way"),
    [
        (
            "llama",
            {"pattern": "2:4"},
            {"weights": "refit", "refine": 1, "refine_rate": 0.01, "include": ("*layers.1*",)},
        ),
        pytest.param("llama", {"sparsity": 0.5, "allocation": "layer"}, {}, marks=pytest.mark.long),
        pytest.param("gpt2", {"pattern": "2:4"}, {"permute": True}, marks=pytest.mark.long),
        pytest.param("qwen3_moe", {"sparsity": 0.5}, {"include": ("*layers.1*",)}, marks=pytest.mark.long),
    ],
    ids=["moved and refined", "kept", "reordered", "experts"],
)
def test_counts_stay_the_divergence_falls_and_recorded_runs_give_the_same_bits(family, amount, way):
    solver = "reconstruct" if way.get("weights") else "wanda"
    options = PruneOptions(reselect=1, max_iterations=5 if way.get("weights") else None, **way)
    recorder, plain, found = RefinedMemory(), {}, []
    for again in range(3):
        model = tiny_model(family)
        report = prune_model(model, BATCHES, solver=solver, options=options, recorder=recorder, **amount)
        found.append((state_of(model), report))
        plain = plain or {name: mask for record in recorder.records.values() for name, mask in record.masks.items()}
        if again == 0:
            recorder.refinement = None
    report = found[0][1]
    gain = report.reselection
    assert gain.rounds == 1 and gain.held_out_after < gain.held_out_before and report.seconds["reselect"] > 0
    assert all(same(found[0][0], state) for state, _ in found[1:]) and recorder.refined == 2
    assert all(other.reselection.moved == gain.moved for _, other in found)
    if report.refinement is not None:
        assert report.refinement.held_out_before == pytest.approx(gain.held_out_after, rel=1e-5)
    dense, moved = tiny_model(family), 0
    layers = {layer.parameter: layer for layer in find_layers(model)[0]}
    for item in report.layers:
        mask, before = report.masks[item.parameter], plain[item.parameter]
        if "allocation" not in amount:
            assert Target(**amount).polytope_of(item.name, (item.rows, item.cols)).contains(mask)
        assert int(mask.sum()) == int(before.sum()), "each layer keeps its count"
        moved += int((mask & ~before).sum())
        assert int((mask & ~before).sum()) == gain.moved.get(item.parameter, 0)
        weight = layers[item.parameter].matrix()
        assert not weight[~mask].view(torch.int32).any(), "+0.0"
        if not way.keys() & {"weights", "permute"}:
            source = next(layer for layer in find_layers(dense)[0] if layer.parameter == item.parameter).matrix()
            assert torch.equal(weight[mask], source[mask]), "the source's bits"
    assert moved == sum(gain.moved.values()) > 0 and bool(report.permutations) is ("permute" in way)
    assert bool(report.weights) is bool(way.get("weights")) and "reselected (1 round" in str(report)
    assert all(torch.equal(found[2][1].masks[name], mask) for name, mask in report.masks.items())


def test_what_does_not_help_is_put_back_to_the_bit(monkeypatch):
    plain, model, events = tiny_model("gpt2"), tiny_model("gpt2"), []
    prune_model(plain, BATCHES, sparsity=0.5, solver="wanda")
    tried = []

    def worse(self, changes):
        tried.append(len(changes))
        Reselector._write(self, changes)
        Reselector._write(self, {name: self._now[name] for name in changes})
        return [10.0] * len(self._whole.held_out)

    monkeypatch.setattr(Reselector, "_tried", worse)
    options = PruneOptions(reselect=3)
    report = prune_model(model, BATCHES, sparsity=0.5, solver="wanda", options=options, on_event=events.append)
    assert same(state_of(plain), state_of(model)) and report.reselection.rounds == 0 and not report.reselection.moved
    assert len(tried) == 3, "all layers, then halves, in one round"
    assert abs(tried[-1] - tried[-2]) <= 1 and tried[-1] + tried[-2] == tried[-3]
    assert [event.kind for event in events if event.refining] == ["reselect_start", "reselect_done"]
    assert "no other masks improved" in str(report)


@pytest.mark.long
def test_half_of_the_layers_may_help_where_all_do_not(monkeypatch):
    whole = Reselector._tried
    monkeypatch.setattr(
        Reselector,
        "_tried",
        lambda self, changes: [9.0] * len(self._whole.held_out) if len(changes) > 6 else whole(self, changes),
    )
    report = prune_model(tiny_model("gpt2"), BATCHES, sparsity=0.5, **ONCE)
    gain = report.reselection
    assert gain.rounds == 1 and gain.held_out_after < gain.held_out_before and 0 < len(gain.moved) <= 12


def test_an_exception_leaves_masks_that_held():
    plain, model = tiny_model("gpt2"), tiny_model("gpt2")
    prune_model(plain, BATCHES, sparsity=0.5, solver="wanda")
    calls = []

    def stop(event) -> None:
        calls.append(event)
        if event.kind == "reselect_start":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, BATCHES, sparsity=0.5, on_event=stop, **ONCE)
    assert same(state_of(plain), state_of(model))
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())


@pytest.mark.long
def test_zeros_of_a_sparse_source_stay_zero():
    model = tiny_model("llama")
    once = prune_model(model, BATCHES, sparsity=0.7, solver="wanda")
    zeros = {name: model.get_parameter(name).detach() == 0 for name in once.masks}
    options = PruneOptions(reselect=1, weights="refit", refine=1, max_iterations=5, include=("*layers.1*",))
    prune_model(model, BATCHES, pattern="2:4", solver="reconstruct", options=options)
    assert not any(bool((zero & (model.get_parameter(name) != 0)).any()) for name, zero in zeros.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reselect": -1}, "reselect must be"),
        ({"reselect_solver": "fw"}, "reselect_solver is 'fw', but reselect is 0"),
        ({"reselect": 1, "reselect_solver": "wanda"}, "must start from a mask, got 'wanda'"),
        ({"reselect": 1, "reselect_solver": "admm"}, "must take an objective with a linear term"),
        ({"reselect": 1, "reselect_solver": "swop"}, "swop"),
        ({"reselect": 1, "certify": "fw"}, "certify is 'fw'"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneOptions(**options)


def test_one_window_is_refused_and_the_plan_says_what_it_takes():
    model = tiny_model("llama")
    with pytest.raises(RelaxPruneError, match="reselect needs at least 2 windows, for one is held out, got 1"):
        prune_model(model, padded_batches(1, windows=1), sparsity=0.5, **ONCE)
    planned = plan_model(model, sparsity=0.5, tokens=10**6, batches=BATCHES, **ONCE)
    assert "reselect" in str(planned.prediction)
    plain, more = (
        make_plan(model, PruneRequest.of(Target(sparsity=0.5), "wanda", options))
        for options in (PruneOptions(), PruneOptions(reselect=1))
    )
    assert more.added_bytes > plain.added_bytes


def test_any_solver_that_starts_from_a_mask_chooses():
    options = PruneOptions(reselect=1, reselect_solver="fw", include=("*layers.1.mlp*",))
    report = prune_model(tiny_model("llama"), BATCHES, sparsity=0.5, solver="wanda", options=options)
    assert report.reselection.held_out_after <= report.reselection.held_out_before


def test_from_the_command_line_and_resumed(place, tmp_path, monkeypatch, capsys):
    words = ("--reselect", "1", "--windows", "8", "--self-share", "0", "--refine-samples", "0")
    whole, after = tmp_path / "whole", tmp_path / "after"
    assert main(arguments(place, whole, *words)) == 0
    said = capsys.readouterr().out
    assert "reselecting, round 0 of 1" in said and "reselected" in said
    record = json.loads((whole / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["reselect"] == 1 and record["report"]["reselection"]["rounds"] == 1
    assert "chosen again by the gradient of the whole model" in (whole / "README.md").read_text()
    assert main(["verify", str(whole)]) == 0
    assert "of the masks before --reselect exchanged" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", interrupting(RunFolder.finish, 1))
        assert main(arguments(place, after, *words)) == 130
    with monkeypatch.context() as patch:
        patch.setattr(Reselector, "run", None)  # what is finished is not repeated
        assert main(arguments(place, after, *words, "--resume")) == 0
    for name in ("model.safetensors", "masks.safetensors"):
        assert (whole / name).read_bytes() == (after / name).read_bytes(), name
    capsys.readouterr()
    assert main(arguments(place, tmp_path / "no", "--reselect", "1", "--offload", "disk")) == 2
    assert "leave out reselect, or load the model whole" in only_sentence(capsys)


@pytest.mark.long
def test_pages_and_packages_say_it(place, tmp_path):
    run, package = tmp_path / "run", tmp_path / "package"
    assert main(arguments(place, run, "--reselect", "1", "--windows", "8", "--self-share", "0")) == 0
    assert main(["report", str(run)]) == 0
    assert "Masks chosen again" in (run / "report.html").read_text()
    assert main(["masks", "export", str(run), str(package)]) == 0
    assert "chosen again by the gradient of the whole model" in (package / "README.md").read_text()
