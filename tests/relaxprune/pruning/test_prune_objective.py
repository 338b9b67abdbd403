"""Whole runs on objectives of the loss's gradient: their parts are what autograd says of the whole dense model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relaxprune import ObjectiveOptions, PruneOptions, StatisticsOptions, plan_model, prune_model
from relaxprune.certificates import Certificate, load_certificate
from relaxprune.cli import main
from relaxprune.cli.notices import report_notices
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.problems import MaskProblem, Objective, RelaxPruneError, TransposableNM
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.runs.run_folder import RunFolder

from ..command_line import SAME, arguments, interrupt, only_sentence
from ..recorders import BlockMemory
from ..tiny_llama import save_tiny_llama, write_text
from ..tiny_models import padded_batches, tiny_model

KINDS = ("rows", "fisher", "coupled")
LONG = pytest.mark.long
SHORT = [pytest.param("rows", marks=LONG), "fisher", pytest.param("coupled", marks=LONG)]
PLAIN = StatisticsOptions(shrinkage=0)
Batches = list[dict[str, Tensor]]


class Kept(BlockMemory):
    """Keeps the problems that layers were solved as, and their certificates."""

    def __init__(self) -> None:
        super().__init__()
        self.problems: dict[str, MaskProblem] = {}
        self.certificates: dict[str, Certificate] = {}

    def save_certificate(self, parameter: str, certificate: Certificate, problem: MaskProblem) -> None:
        weight = problem.weight.clone()  # before it is pruned
        self.problems[parameter] = MaskProblem(weight, problem.minimised, problem.polytope)
        self.certificates[parameter] = certificate


def asked(kind: str, **words: Any) -> PruneOptions:
    numbers = {name: words.pop(name) for name in ("strength", "cap", "groups") if name in words}
    return PruneOptions(**{"max_iterations": 12, **words}, objective=ObjectiveOptions(kind, **numbers))


def certified(model: nn.Module, batches: Batches, kind: str, **words: Any) -> tuple[Kept, PruneReport]:
    recorder, options = Kept(), asked(kind, certify="fw", statistics=PLAIN, **words)
    return recorder, prune_model(copy.deepcopy(model), batches, sparsity=0.5, options=options, recorder=recorder)


def seen(model: nn.Module, window: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Inputs of a window's layers, gradients at their outputs and in their weights: autograd on the whole model."""
    layers = [layer for layer in find_layers(model)[0] if layer.expert is None]
    reads: dict[str, Tensor] = {}
    gives: dict[str, Tensor] = {}

    def listen(name: str) -> Any:
        def hear(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            reads[name], gives[name] = args[0].detach()[0], output

        return hear

    handles = [layer.module.register_forward_hook(listen(layer.parameter)) for layer in layers]
    with borrowed(model), torch.enable_grad():
        logits = model(**window).logits[0]
        for handle in handles:
            handle.remove()
        real = window["attention_mask"][0].bool()
        pairs = real[:-1] & real[1:]
        loss = cross_entropy(logits[:-1][pairs], window["input_ids"][0, 1:][pairs], reduction="sum")
        weights = {layer.parameter: layer for layer in layers if layer.parameter in gives}
        outputs = torch.autograd.grad(loss, list(gives.values()), retain_graph=True, allow_unused=True)
        own = torch.autograd.grad(loss, [layer.weight for layer in weights.values()], allow_unused=True)
    moved = {
        name: layer.as_matrix(gradient)
        for (name, layer), gradient in zip(weights.items(), own, strict=True)
        if gradient is not None
    }
    return reads, {name: found[0] for name, found in zip(gives, outputs, strict=True) if found is not None}, moved


def windows(batches: Batches) -> Batches:
    return [{key: value[row : row + 1] for key, value in batch.items()} for batch in batches for row in range(2)]


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


FIRST = {"gpt2": "*.0.*c_attn"}  # its inputs are still dense, as are gradients everywhere


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=LONG), pytest.param("qwen3_moe", marks=LONG)])
def test_the_parts_are_what_autograd_says_of_the_whole_model(family: str) -> None:
    model, batches = tiny_model(family, torch.float64), padded_batches()
    groups = {"rows": {"groups": 3}, "fisher": {"groups": 8}, "coupled": {}}
    quick = {"max_iterations": 1, "polish": None, "include": (FIRST.get(family, "*.0.*q_proj"), "*.1.*")}
    found = {kind: certified(model, batches, kind, **quick, **own)[0] for kind, own in groups.items()}
    each = [seen(model, window) for window in windows(batches)]
    kept = [window["attention_mask"][0].bool() for window in windows(batches)]
    checked = 0
    for layer in find_layers(model)[0]:
        name = layer.parameter
        parts = {kind: memory.problems[name].minimised for kind, memory in found.items() if name in memory.problems}
        if layer.expert is not None:
            assert all(objective.plain for objective in parts.values())
        elif parts and "gate." not in name:
            checked += 1
            weight, gram = layer.matrix(), parts["fisher"].gram.matrix
            own = torch.stack([gradients[name] for _, _, gradients in each], dim=1)
            own *= (
                (weight.square() * gram.diagonal()).sum() / (weight.square() * own.square().sum(dim=1)).sum()
            ).sqrt()
            _check_fisher(parts["fisher"], own)
            outputs = torch.cat([slopes[name][real] for (_, slopes, _), real in zip(each, kept, strict=True)])
            moment = outputs.T @ outputs
            _check_coupled(parts["coupled"], moment / moment.diagonal().mean())
            if ".0." in name:
                inputs = torch.cat([reads[name][real] for (reads, _, _), real in zip(each, kept, strict=True)])
                _check_rows(parts["rows"], inputs, outputs)
    assert checked > 3


def _check_fisher(found: Objective, lines: Tensor) -> None:
    assert found.fisher is not None
    for row in range(0, len(lines), 7):
        assert relative(found.fisher[row].T @ found.fisher[row], lines[row].T @ lines[row]) < 1e-9


def _check_coupled(found: Objective, moment: Tensor) -> None:
    assert found.outputs is not None
    assert relative(found.outputs.matrix, 0.5 * moment + 0.5 * torch.eye(len(moment))) < 1e-9


def _check_rows(found: Objective, inputs: Tensor, outputs: Tensor) -> None:
    rows = outputs.shape[1]
    assert found.row_groups is not None and found.row_groups.tolist() == [row * 3 // rows for row in range(rows)]
    for group in range(3):
        sizes = outputs[:, found.row_groups == group].square().mean(dim=1).sqrt()
        sizes = sizes.minimum(sizes.sort().values[int(0.99 * len(sizes))])
        weights = sizes / sizes.mean()
        gram = (inputs * weights.unsqueeze(1)).T @ inputs / weights.sum()
        assert relative(found.grams[group].matrix, gram) < 1e-9


def test_with_more_windows_than_lines_random_signs_join_them() -> None:
    model, batches = tiny_model("llama", torch.float64), padded_batches()
    memory, _ = certified(model, batches, "fisher", groups=2)
    name = "model.layers.1.mlp.up_proj.weight"
    fisher = memory.problems[name].minimised.fisher
    gradients = [gradients[name] for _, _, gradients in (seen(model, window) for window in windows(batches))]
    for line in range(2):
        own = torch.stack([gradients[number].flatten() for number in range(line, len(gradients), 2)], dim=1)
        signs = torch.linalg.lstsq(own, fisher[:, line].reshape(-1, 1)).solution
        assert (
            torch.allclose(signs.abs(), signs.abs()[0]) and relative(own @ signs, fisher[:, line].reshape(-1, 1)) < 1e-9
        )


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_are_of_the_objective_and_hold(kind: str, tmp_path: Path) -> None:
    memory, report = certified(tiny_model("llama"), padded_batches(), kind, include=("*.1.*proj",))
    for layer in report.layers:
        certificate, problem = memory.certificates[layer.parameter], memory.problems[layer.parameter]
        certificate.verify(problem)
        assert layer.inputs.minimises == kind and certificate.lower_bound <= layer.objective
        assert layer.objective == pytest.approx(problem.objective(report.masks[layer.parameter]), rel=1e-9)
        own = MaskProblem(problem.weight, memory.problems[layer.parameter].minimised.grams[0], problem.polytope)
        if kind != "rows":
            assert layer.loss.gram_relative_error == pytest.approx(
                own.objective(report.masks[layer.parameter]) / own.dense_energy, rel=1e-6
            )
        certificate.save(problem, tmp_path / "kept.safetensors")
        loaded = load_certificate(tmp_path / "kept.safetensors")
        loaded.verify(problem)
        with pytest.raises(RelaxPruneError, match="the certificate is for a problem of"):
            loaded.verify(own)


@pytest.mark.parametrize("kind", SHORT)
def test_strength_0_is_the_run_without(kind: str) -> None:
    reports = [
        prune_model(tiny_model("gpt2"), padded_batches(), sparsity=0.5, options=options)
        for options in (asked(kind, strength=0, polish=None), PruneOptions(max_iterations=12, polish=None))
    ]
    assert all(torch.equal(mask, reports[1].masks[name]) for name, mask in reports[0].masks.items())
    assert [layer.objective for layer in reports[0].layers] == [layer.objective for layer in reports[1].layers]


@pytest.mark.parametrize("kind", SHORT)
def test_weights_move_for_the_same_objective(kind: str) -> None:
    model = tiny_model("llama")
    options = asked(kind, weights="refit", damping=0.01)
    report = prune_model(model, padded_batches(), sparsity=0.5, solver="fw", options=options)
    for layer in report.layers:
        kept = layer.loss.kept_objective
        assert kept is not None and layer.objective < kept and layer.lower_bound == 0
        assert not model.get_parameter(layer.parameter)[~report.masks[layer.parameter]].any()
    assert report.mean_relative_error < 1


REFUSED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "solver 'alps' needs one Gram": ("fisher", {"solver": "alps"}, {}),
    "solver 'dicg' treats rows one by one": ("coupled", {"solver": "dicg"}, {}),
    "rows that share a count must share a Gram": ("rows", {"allocation": "layer"}, {}),
    "an objective that couples rows takes sets": ("coupled", {"sparsity": None, "polytope": TransposableNM(2, 4)}, {}),
    "permute is True": ("fisher", {"sparsity": None, "pattern": "2:4"}, {"permute": True}),
    "correct is 0.5": ("rows", {}, {"correct": 0.5, "weights": "refit"}),
    "select is": ("rows", {}, {"statistics": StatisticsOptions(select=(0.1, 0.2))}),
    "must be below 1 for weights that move": ("coupled", {"solver": "fw"}, {"strength": 1, "weights": "refit"}),
    "solver 'obs-swap' needs one Gram": ("fisher", {"solver": "fw"}, {"polish": "obs-swap", "weights": "refit"}),
    "certify is 'sdp'": ("coupled", {}, {"certify": "sdp"}),
    "got also 'lm_head'": ("rows", {}, {"include": ("*",)}),
    "cap is 0.5": ("fisher", {}, {"cap": 0.5}),
    "groups is 3": ("coupled", {}, {"groups": 3}),
    "must be at most 1, got 2": ("coupled", {}, {"strength": 2}),
    "objective must be one of": ("rowss", {}, {}),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_does_not_fit_is_refused_before_any_work(message: str) -> None:
    kind, words, options = REFUSED[message]
    with pytest.raises(RelaxPruneError, match=message):
        plan_model(tiny_model("llama"), **{"sparsity": 0.5, **words}, options=asked(kind, **options))


@pytest.mark.parametrize(("family", "message"), [("bert", "with a later token"), ("albert", "replayed one by one")])
def test_a_model_without_predictions_of_next_tokens_is_refused(family: str, message: str) -> None:
    with pytest.raises(RelaxPruneError, match=message):
        prune_model(tiny_model(family), padded_batches(), sparsity=0.5, options=asked("fisher"))
    bare = tiny_model("llama").model
    with pytest.raises(RelaxPruneError, match="needs a decoder with an output head, got a LlamaModel"):
        plan_model(bare, sparsity=0.5, options=asked("fisher"))


def padded_at_the_end() -> Batches:
    batches = padded_batches()
    for batch in batches:
        batch["attention_mask"][:, -2:] = 0
    return batches


def test_padding_after_the_last_token_hides_no_model_that_looks_ahead() -> None:
    with pytest.raises(RelaxPruneError, match="with a later token"):
        prune_model(tiny_model("bert"), padded_at_the_end(), sparsity=0.5, options=asked("fisher"))


def test_batches_without_a_token_to_predict_are_passed_over_and_refused_alone() -> None:
    empty = {key: value * 0 + (key == "input_ids") for key, value in padded_batches()[0].items()}
    reports = [
        prune_model(tiny_model("llama"), batches, sparsity=0.5, options=asked("coupled", include=("*.1.*up_proj",)))
        for batches in ([empty, *padded_at_the_end()], padded_at_the_end())
    ]
    assert reports[0].layers[0].objective == reports[1].layers[0].objective
    alone = {key: value[:, :1] for key, value in padded_batches()[0].items()}
    with pytest.raises(RelaxPruneError, match="objective needs tokens to predict"):
        prune_model(tiny_model("llama"), [alone, empty], sparsity=0.5, options=asked("fisher"))


def test_layers_that_keep_their_grams_are_named_even_if_all_do() -> None:
    options = asked("fisher", include=("*.0.*experts*",), polish=None)
    report = prune_model(tiny_model("qwen3_moe"), padded_batches(), sparsity=0.5, options=options)
    assert any("layers minimise the error on their Grams alone" in notice for notice in report_notices(report))


def test_a_cap_at_the_smallest_weight_leaves_none_apart() -> None:
    memory, _ = certified(tiny_model("llama"), padded_batches(), "rows", cap=0, include=("*.0.*up_proj",))
    ((one, *others),) = (problem.minimised.grams for problem in memory.problems.values())
    assert others and all(torch.equal(one.matrix, other.matrix) for other in others)


def test_an_objective_counts_in_the_plan() -> None:
    model = tiny_model("llama")
    sizes = [plan_model(model, sparsity=0.5, options=asked(kind), tokens=4096).added_bytes for kind in ("gram", *KINDS)]
    assert all(size > sizes[0] + 4 * 4096 * 32 * 4 for size in sizes[1:])
    plan = plan_model(model, sparsity=0.5, options=asked("rows"), batches=padded_batches())
    assert plan.prediction is not None and plan.prediction.seconds["gradients"] > 0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_llama(folder / "tiny", blocks=2)
    write_text(folder / "text.txt")
    return folder


@pytest.mark.parametrize("kind", SHORT)
def test_an_interrupted_run_goes_on_to_the_same_files(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, whole, stopped = ["--objective", kind, "--certify", "fw"], tmp_path / "whole", tmp_path / "stopped"
    assert main(arguments(place, whole, *words)) == 0
    interrupt(monkeypatch, stopped, arguments(place, stopped, *words))
    capsys.readouterr()
    assert main(arguments(place, stopped, "--resume")) == 2
    assert f'settings.objective.kind was "{kind}" and is now "gram"' in only_sentence(capsys)
    assert main(arguments(place, stopped, *words, "--resume")) == 0
    for name in SAME:
        assert (whole / name).read_bytes() == (stopped / name).read_bytes()
    record = json.loads((whole / "relaxprune.json").read_text())
    assert record["fingerprint"]["settings"]["objective"]["kind"] == kind
    assert record["report"]["layers"][0]["gram_relative_error"] > 0 and kind in (whole / "README.md").read_text()
    assert main(["verify", str(whole)]) == 0
    assert main(["report", str(whole)]) == 0
    assert RunFolder(whole, {}).finished
