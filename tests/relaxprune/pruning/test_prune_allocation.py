"""Pruning whole models by an allocation: totals, caps, rows that share, the paper's rule, and interrupted runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from relaxprune.cli import main
from relaxprune.models.layers import find_layers
from relaxprune.options.allocation import Allocation
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.planner import plan_model
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.pruning.sharing import counts as allocating

from ..command_line import arguments, only_sentence, run_process
from ..recorders import RunMemory
from ..tiny_models import padded_batches, tiny_model

QUICK = PruneOptions(max_iterations=12)


def pruned(report: PruneReport) -> dict[str, int]:
    """Weights pruned of each layer, counted from the masks."""
    return {layer.name: int((~report.masks[layer.parameter]).sum()) for layer in report.layers}


def weights(report: PruneReport) -> int:
    return sum(layer.rows * layer.cols for layer in report.layers)


@pytest.mark.parametrize(("kind", "family"), [("model", "llama"), ("owl", "llama"), ("owl", "gpt2")])
def test_totals_and_caps(kind: str, family: str) -> None:
    report = prune_model(tiny_model(family), padded_batches(), sparsity=0.55, allocation=kind, solver="wanda")
    total = int(weights(report) * 0.55 + 1e-9)
    left = total - sum(pruned(report).values())
    assert 0 <= left < max(layer.rows for layer in report.layers)
    for layer in report.layers:
        counts = (~report.masks[layer.parameter]).sum(1)
        assert counts.min() == counts.max(), "rows of a layer are pruned alike"
        assert layer.requested_sparsity == int(counts[0]) / layer.cols
        assert layer.sparsity <= (0.6 if kind == "model" else 0.71) + 1e-9
    assert len({layer.requested_sparsity for layer in report.layers}) > 1
    assert report.polytope == {"sparsity": 0.55, "allocation": kind}
    assert report.seconds["allocate"] > 0


def test_a_cap_holds_and_is_reached() -> None:
    allocation = Allocation("model", max_sparsity=0.53)
    report = prune_model(tiny_model("llama"), padded_batches(), sparsity=0.5, allocation=allocation, solver="wanda")
    counts = pruned(report)
    most = {layer.name: layer.rows * int(layer.cols * 0.53) for layer in report.layers}
    assert all(counts[name] <= most[name] for name in counts)
    assert any(counts[name] == most[name] for name in counts)


class Twins(nn.Module):
    """Blocks with the same weight, on the same inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        first = nn.Linear(16, 8, bias=False)
        self.blocks = nn.ModuleList([first, *(copy.deepcopy(first) for _ in range(3))])

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([block(inputs) for block in self.blocks]).sum(0)


@pytest.mark.parametrize("kind", ["model", "owl"])
def test_layers_that_are_alike_are_pruned_alike(kind: str) -> None:
    inputs = [torch.randn(40, 16, generator=torch.Generator().manual_seed(1))]
    alike = prune_model(Twins(), inputs, sparsity=0.5, allocation=kind, options=QUICK)
    uniform = prune_model(Twins(), inputs, sparsity=0.5, options=QUICK)
    assert set(pruned(alike).values()) == {8 * 8}
    assert all(torch.equal(mask, uniform.masks[name]) for name, mask in alike.masks.items())


def test_rows_of_a_layer_share_its_count() -> None:
    report = prune_model(tiny_model("llama"), padded_batches(), sparsity=0.5, allocation="layer", options=QUICK)
    assert all(
        count == layer.rows * layer.cols // 2
        for count, layer in zip(pruned(report).values(), report.layers, strict=True)
    )
    assert any(len(mask.sum(1).unique()) > 1 for mask in report.masks.values())
    assert report.polytope == {"sparsity": 0.5, "allocation": "layer"}


def test_owl_follows_the_paper() -> None:
    """The authors' rule, written out on Wanda scores that are taken here from the dense model."""
    model, batches = tiny_model("llama"), padded_batches(1)
    layers = [layer for layer in find_layers(model)[0] if ".layers." in layer.name]
    squares: dict[str, Tensor] = {}

    def listen(name: str) -> object:
        return lambda _module, args: squares.update({name: args[0].reshape(-1, args[0].shape[-1]).square().mean(0)})

    hooks = [layer.module.register_forward_pre_hook(listen(layer.name)) for layer in layers]
    with torch.no_grad():
        model(**batches[0])
    for hook in hooks:
        hook.remove()
    ratios = []
    for block in range(3):
        scores = torch.cat(
            [
                (layer.matrix().abs() * squares[layer.name].sqrt()).flatten()
                for layer in layers
                if f".{block}." in layer.name
            ]
        )
        ratios.append(float((scores > 3 * scores.mean()).double().mean()))
    least, most = min(ratios), max(ratios)
    density = [(ratio - least) / (most - least) * 0.1 * 2 for ratio in ratios]
    density = [value - sum(density) / 3 + 0.5 for value in density]
    allocation = Allocation("owl", outliers=3.0, spread=0.1)
    report = prune_model(model, batches, sparsity=0.5, allocation=allocation, solver="wanda")
    assert most > least
    for layer in report.layers:
        assert abs(layer.requested_sparsity * layer.cols - (1 - density[layer.block]) * layer.cols) < 1


def test_a_layer_that_costs_nothing_is_pruned_most() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(torch.arange(48) % 5 < 2)
    allocation = Allocation("model", max_sparsity=0.8)
    report = prune_model(model, padded_batches(), sparsity=0.5, allocation=allocation, solver="wanda")
    sparsity = {layer.name: layer.sparsity for layer in report.layers}
    assert sparsity["model.layers.0.mlp.down_proj"] > 0.6


def test_an_interrupted_run_goes_on_with_the_same_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = RunMemory()
    whole = prune_model(
        tiny_model("llama"), padded_batches(), sparsity=0.5, allocation="model", options=QUICK, recorder=keeper
    )
    assert keeper.counts == {layer.name: round(layer.requested_sparsity * layer.cols) for layer in whole.layers}
    del keeper.records[2]
    monkeypatch.setattr(allocating, "error_curve", None)  # the pass is not made again
    again = prune_model(
        tiny_model("llama"), padded_batches(), sparsity=0.5, allocation="model", options=QUICK, recorder=keeper
    )
    assert keeper.solved == [0, 1, 2, 2]
    assert all(torch.equal(mask, again.masks[name]) for name, mask in whole.masks.items())


def test_a_plan_says_that_the_shares_are_open() -> None:
    assert "shares by a pass over the dense model (owl)" in str(
        plan_model(tiny_model("llama"), sparsity=0.5, allocation="owl")
    )
    keep = {
        layer.name: layer.keep for layer in plan_model(tiny_model("llama"), sparsity=0.3, allocation="layer").layers
    }
    assert keep["model.layers.0.self_attn.q_proj"] == 32 * 32 - int(0.3 * 32 * 32)


def test_an_unknown_allocation_is_refused_before_the_model_runs() -> None:
    with pytest.raises(RelaxPruneError, match="allocation must be one of uniform, layer, owl, model"):
        prune_model(tiny_model("llama"), [], sparsity=0.5, allocation="best")


def test_the_command_line_resumes_the_same_allocation(place: Path, tmp_path: Path) -> None:
    whole, out, more = tmp_path / "whole", tmp_path / "out", ("--allocation", "model", "--max-sparsity", "0.6")
    assert main(arguments(place, whole, *more)) == 0
    record = json.loads((whole / "relaxprune.json").read_text())
    asked = {"sparsity": 0.5, "allocation": "model", "max_sparsity": 0.6}
    assert record["report"]["polytope"] == record["fingerprint"]["settings"]["polytope"] == asked
    script = str(Path(__file__).parents[1] / "kill_at.py")
    killed = run_process([script, "write_masks", "2", *arguments(place, out, *more)], tmp_path)
    assert killed.returncode == 0, killed.stderr
    stored = json.loads((out / ".relaxprune/allocation.json").read_text())["pruned_per_row"]
    assert stored == {
        layer["name"]: round(layer["requested_sparsity"] * layer["cols"]) for layer in record["report"]["layers"]
    }
    assert main(arguments(place, out, "--resume", *more)) == 0
    assert (out / "masks.safetensors").read_bytes() == (whole / "masks.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--allocation", "modle"], "did you mean 'model'"),
        (["--pattern", "2:4", "--allocation", "model"], "divides a sparsity, got pattern"),
        (["--allocation", "owl", "--max-sparsity", "0.7"], "which allocation 'owl' does not use"),
        (["--allocation", "model", "--max-sparsity", "0.4"], "max_sparsity must lie between"),
    ],
)
def test_the_command_line_refuses(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(arguments(place, tmp_path / "out", *more)) == 2
    assert words in only_sentence(capsys)
    assert not (tmp_path / "out").exists()
