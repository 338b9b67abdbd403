"""Pruning models whose kept weights move: what is written, what is reported, and runs that were interrupted."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from relaxprune.cli import main
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.request import PruneRequest
from relaxprune.runs.mask_file import read_masks

from ..command_line import arguments, interrupt, only_sentence
from ..recorders import BlockMemory
from ..tiny_models import padded_batches, tiny_model

REFIT = PruneOptions(weights="refit")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("solver", ["reconstruct", "sparsegpt", "fw"])
def test_new_weights_lose_less_than_those_that_stay(family, solver):
    dense = tiny_model(family)
    model = copy.deepcopy(dense)
    report = prune_model(model, padded_batches(), sparsity=0.5, solver=solver, options=REFIT)
    before = {layer.parameter: layer.matrix() for layer in find_layers(dense)[0]}
    after = {layer.parameter: layer.matrix() for layer in find_layers(model)[0]}
    assert set(report.weights) == set(report.masks)
    moved = 0
    for item in report.layers:
        weight, mask = after[item.parameter], report.masks[item.parameter]
        assert torch.equal(weight, report.weights[item.parameter])
        assert bool((weight[~mask] == 0).all()) and not bool(torch.signbit(weight[~mask]).any())
        moved += int((weight != before[item.parameter])[mask].sum())
        assert item.lower_bound <= item.objective
        assert item.objective <= item.loss.kept_objective * (1 + 1e-6) or solver == "sparsegpt"
        assert item.cost.solver == solver
    assert moved > 0
    keeping = prune_model(copy.deepcopy(dense), padded_batches(), sparsity=0.5, solver="wanda")
    assert report.mean_relative_error < keeping.mean_relative_error or solver == "sparsegpt"
    assert not keeping.weights and all(layer.loss.kept_objective is None for layer in keeping.layers)


def test_what_is_reported_is_of_the_weights_that_are_written():
    torch.manual_seed(0)
    inputs = 0.05 * torch.randn(64, 32) + 3 * torch.randn(64, 1)
    inputs = inputs.to(torch.bfloat16)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16, bias=False)).to(torch.bfloat16)
    dense = model[0].weight.detach().double()
    plain = PruneOptions(weights="refit", damping=1e-6, statistics=StatisticsOptions(shrinkage=0))
    report = prune_model(model, [inputs], sparsity=0.25, options=plain)
    wide = inputs.double()
    gram = wide.T @ wide / len(wide)
    moved = dense - model[0].weight.detach().double()
    lost = float(((moved @ gram) * moved).sum() + 1e-6 * gram.diagonal().mean() * moved.square().sum())
    layer = report.layers[0]
    assert layer.objective == pytest.approx(lost, rel=1e-3)
    assert layer.loss.dense_energy == pytest.approx(float(((dense @ gram) * dense).sum()), rel=1e-3)
    assert layer.relative_error == pytest.approx(layer.objective / layer.loss.dense_energy)


def test_the_default_solver_is_that_of_weights_that_move():
    report = prune_model(tiny_model("llama"), padded_batches(), pattern="2:4", options=REFIT)
    assert report.solver == "reconstruct" and report.options["weights"] == "refit"
    exchanged = PruneOptions(weights="refit", polish="obs-swap")
    better = prune_model(tiny_model("llama"), padded_batches(), pattern="2:4", options=exchanged)
    assert better.layers[0].cost.polish == "obs-swap"
    assert better.layers[0].objective <= report.layers[0].objective * (1 + 1e-9)


def test_recorded_blocks_are_written_as_they_were():
    model, again, keeper = tiny_model("llama"), tiny_model("llama"), BlockMemory()
    first = prune_model(model, padded_batches(), sparsity=0.5, options=REFIT, recorder=keeper)
    second = prune_model(again, padded_batches(), sparsity=0.5, options=REFIT, recorder=keeper)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert set(second.weights) == set(first.weights)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "refitt"}, "weights must be one of keep, refit or None, got 'refitt'; did you mean 'refit'"),
        ({"weights": "refit", "damping": -1.0}, r"damping must lie in \[0, 1\]"),
        ({"weights": "refit", "certify": "fw"}, "certify is 'fw', which proves bounds of masks whose weights stay"),
        ({"damping": 0.5}, 'weights="keep" does not use'),
        ({"polish": "obs-swap"}, 'or weights="refit" for a model'),
    ],
)
def test_what_does_not_go_together_is_refused(options, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneRequest.of(Target(sparsity=0.5), options=PruneOptions(**options))


@pytest.fixture(scope="module")
def refitted(place: Path) -> Path:
    """A run with new weights that nothing interrupted."""
    out = place / "refitted"
    assert main(arguments(place, out, "--refit")) == 0
    return out


def test_the_folder_has_the_new_weights_and_says_so(place: Path, refitted: Path) -> None:
    saved, dense = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (refitted, place / "tiny"))
    masks = read_masks(refitted / "masks.safetensors")
    for name, mask in masks.items():
        assert bool((saved[name][~mask] == 0).all())
        assert bool((saved[name] != dense[name])[mask].any())
    assert all(torch.equal(saved[name], dense[name]) for name in saved if name not in masks)
    record = json.loads((refitted / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["weights"] == "refit"
    assert record["report"]["solver"] == "reconstruct"
    assert all(layer["kept_objective"] >= layer["objective"] for layer in record["report"]["layers"])
    assert "new values, fitted to the calibration text" in (refitted / "README.md").read_text()


def test_interrupted_and_resumed_is_identical(
    place: Path,
    refitted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    interrupt(monkeypatch, out, arguments(place, out, "--refit"))
    capsys.readouterr()
    assert main(arguments(place, out, "--refit", "--damping", "0.5", "--resume")) == 2
    assert "damping" in only_sentence(capsys)
    weights = next((out / ".relaxprune" / "weights").glob("*.safetensors"), None)
    assert weights is not None
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert main(arguments(place, out, "--refit", "--resume")) == 2
    assert "00000.safetensors' is damaged" in only_sentence(capsys)
    weights.write_bytes(whole)
    assert main(arguments(place, out, "--refit", "--resume")) == 0
    saved, meant = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (out, refitted))
    assert all(torch.equal(saved[name], meant[name]) for name in meant)
