"""Refining a whole model towards the dense model's predictions."""

from __future__ import annotations

import copy
import itertools
import json
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from relaxprune.cli import main
from relaxprune.cli.prune import run
from relaxprune.costs import TokenCounts
from relaxprune.inputs.batches import read_batches, split_windows
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.planner import make_plan, plan_model, with_prediction
from relaxprune.pruning.prediction import Trial
from relaxprune.pruning.request import PruneRequest
from relaxprune.pruning.tuning import model_refiner, predictions, recipes
from relaxprune.pruning.tuning.held_out import Windows
from relaxprune.runs.run_folder import RunFolder
from relaxprune.text.model_samples import can_sample

from ..command_line import arguments, interrupting, only_sentence
from ..recorders import RefinedMemory
from ..tiny_models import padded_batches, tiny_model

BATCHES = padded_batches(12, windows=4, length=24)
REFINED = PruneOptions(refine=2, refine_rate=0.004, max_iterations=5)
WAYS = {
    "masks": {},
    "moved": {"weights": "refit"},
    "moved and tuned": {"weights": "refit", "tune": 1, "correct": 0.5},
    "certified": {"certify": "diagonal"},
}


def divergence(model: nn.Module, dense: nn.Module, windows) -> float:
    """Return the mean over windows of the mean over real tokens of KL(dense ‖ model), the plain way, in float64."""
    means = []
    for window in windows:
        with torch.no_grad():
            own, wanted = (one(**window.kwargs).logits.double().log_softmax(-1) for one in (model, dense))
        each = (wanted.exp() * (wanted - own)).sum(-1)
        means.append(float(each.mean() if window.kept is None else each[window.kept].mean()))
    return sum(means) / len(means)


def held_out_of(batches):
    """Return every fourth window, which are held out."""
    return [window for batch in read_batches(batches) for window in split_windows(batch)][1::4]


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float32),
        ("llama", torch.bfloat16),
        ("gpt2", torch.float32),
        ("gemma3", torch.bfloat16),
        ("qwen3_moe", torch.float32),
        ("bert", torch.float32),
    ],
)
def test_the_divergence_falls_and_only_kept_weights_move(family, dtype):
    dense, model = tiny_model(family, dtype), tiny_model(family, dtype)
    flags = {name: index % 2 == 0 for index, (name, _) in enumerate(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    model.train()
    report = prune_model(model, BATCHES, sparsity=0.5, options=REFINED)
    assert all(module.training for module in model.modules())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())

    model.eval()
    found, held_out = report.refinement, held_out_of(BATCHES)
    assert found.measure == "divergence" and found.passes >= 1 and found.held_out_windows == len(held_out) == 12
    assert found.held_out_after < 0.99 * found.held_out_before and found.tuned_after < 0.99 * found.tuned_before
    assert found.held_out_after == pytest.approx(
        divergence(model, dense, held_out), rel=1e-3 if dtype.itemsize > 2 else 0.1
    )
    moved = 0
    for layer in find_layers(model)[0]:
        if layer.parameter in report.masks:
            mask, weight = report.masks[layer.parameter], layer.matrix()
            assert not weight[~mask].view(torch.int32 if dtype.itemsize == 4 else torch.int16).any(), "+0.0"
            assert torch.equal(weight, report.weights[layer.parameter])
            moved += 1
    assert moved == len(report.masks)
    pruned = {id(layer.weight) for layer in find_layers(model)[0] if layer.parameter in report.masks}
    for name, parameter in model.named_parameters():
        assert id(parameter) in pruned or torch.equal(parameter, dense.get_parameter(name)), name
    assert "refined" in str(report) and report.to_dict()["refinement"]["passes"] == found.passes
    assert report.seconds["refine"] > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("amount", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=["half", "2:4"])
def test_recorded_runs_give_the_same_bits(way, amount):
    """Whole; again from the blocks; and from the record of the refinement."""
    options = PruneOptions(refine=1, refine_rate=0.01, max_iterations=5, **WAYS[way])
    recorder, found = RefinedMemory(), []
    for _ in range(3):
        model = tiny_model("llama")
        report = prune_model(model, BATCHES, options=options, recorder=recorder, **amount)
        found.append((state_of(model), report))
        if len(found) == 1:
            recorder.refinement = None
    first, report = found[0]
    assert all(same(first, other) and again.refinement.passes == report.refinement.passes for other, again in found)
    assert all(torch.equal(report.weights[name], found[2][1].weights[name]) for name in report.masks)
    assert recorder.solved == [0, 1, 2] and recorder.refined == 2
    if way == "certified":
        assert all(layer.bound.certificate == "diagonal" for layer in report.layers)


def test_order_of_channels_and_a_pruned_head():
    """Both change what the dense model's predictions are made with later."""
    for family, amount, options in (
        ("llama", {"pattern": "2:4"}, {"permute": True}),
        ("llama", {"sparsity": 0.5}, {"include": ("*mlp*", "lm_head")}),
    ):
        dense, model = tiny_model(family), tiny_model(family)
        options = PruneOptions(refine=2, refine_rate=0.01, max_iterations=5, **options)
        report = prune_model(model, BATCHES, options=options, **amount)
        measured = divergence(model, dense, held_out_of(BATCHES))
        assert report.refinement.held_out_after == pytest.approx(measured, rel=1e-3)
        assert report.refinement.held_out_after < 0.97 * report.refinement.held_out_before


def test_blocks_run_again_give_the_same_weights(monkeypatch):
    found = []
    for again in (True, False):
        if not again:
            monkeypatch.setattr("relaxprune.inputs.checkpointing._again", lambda forward: forward)
        model = tiny_model("llama").double()
        prune_model(model, BATCHES, sparsity=0.5, options=REFINED)
        found.append(state_of(model))
    assert all(torch.allclose(tensor, found[1][name], rtol=1e-9, atol=1e-12) for name, tensor in found[0].items())


def test_few_logits_at_a_time_give_the_same(monkeypatch):
    reports = []
    for entries in (2**24, 64 * 5):
        monkeypatch.setattr("relaxprune.pruning.tuning.distances._CHUNK_ENTRIES", entries)
        reports.append(prune_model(tiny_model("llama").double(), BATCHES, sparsity=0.5, options=REFINED))
    one, other = (report.refinement for report in reports)
    assert one.held_out_after == pytest.approx(other.held_out_after, rel=1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_logits_that_are_no_plain_product(known, monkeypatch):
    """A model caps its logits; where that were not known, the logits are kept themselves."""
    import transformers

    def capped(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
        config = transformers.Gemma2Config(
            **small,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=64,
            final_logit_softcapping=2.0,
            initializer_range=0.3,
        )
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    if not known:
        monkeypatch.setattr(predictions, "_scaled", lambda config: lambda logits: logits)
    dense, model = capped(0), capped(0)
    report = prune_model(model, BATCHES, sparsity=0.5, options=REFINED)
    measured = divergence(model, dense, held_out_of(BATCHES))
    assert report.refinement.held_out_after == pytest.approx(measured, rel=1e-3)
    assert report.refinement.held_out_after < report.refinement.held_out_before


class Chain(nn.Module):
    """A model without a list of blocks or an output head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.layers = nn.Sequential(nn.Linear(24, 48), nn.Tanh(), nn.Linear(48, 24))

    def forward(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.layers(states)
        return {"loss": outputs.mean(), "states": outputs}


def test_a_model_without_a_head_is_compared_by_what_it_puts_out():
    batches = [torch.randn(4, 8, 24, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    dense, model = Chain(), Chain()
    report = prune_model(model, batches, sparsity=0.5, options=REFINED)
    found = report.refinement
    assert found.measure == "error" and found.held_out_after < found.held_out_before
    errors = []
    for window in held_out_of(batches):
        with torch.no_grad():
            got, wanted = (one(*window.args)["states"].flatten(0, 1) for one in (model, dense))
        errors.append(((got - wanted).square().sum(1) / wanted.square().sum(1)).mean())
    assert found.held_out_after == pytest.approx(float(sum(errors) / len(errors)), rel=1e-4)
    assert "relative error of the output" in str(report)


class Valued(nn.Module):
    """A language model with a head of another kind beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model("llama")
        self.value = nn.Linear(32, 1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.inner(input_ids, attention_mask=attention_mask, output_hidden_states=True)
        return {"value": self.value(found.hidden_states[-1]), "logits": found.logits}


def test_a_wrapped_model_is_refined_by_its_predictions():
    dense, model = Valued(), Valued()
    found = prune_model(model, BATCHES, sparsity=0.5, options=REFINED).refinement
    measured = divergence(model.inner, dense.inner, held_out_of(BATCHES))
    assert found.measure == "divergence" and found.held_out_after == pytest.approx(measured, rel=1e-3)


def test_an_encoder_decoder_model():
    import transformers

    def small() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 64}
        config = transformers.T5Config(**sizes, decoder_start_token_id=0, initializer_factor=1.0)
        return transformers.T5ForConditionalGeneration(config).eval()

    generator = torch.Generator().manual_seed(2)
    batches = []
    for _ in range(16):
        marks = torch.ones(4, 10, dtype=torch.long)
        marks[0, -3:] = 0
        batches.append(
            {
                "input_ids": torch.randint(3, 60, (4, 16), generator=generator),
                "decoder_input_ids": torch.randint(3, 60, (4, 10), generator=generator),
                "decoder_attention_mask": marks,
            }
        )
    dense, model = small(), small()
    report = prune_model(model, batches, sparsity=0.5, options=REFINED)
    measured = []
    for window in held_out_of(batches):
        with torch.no_grad():
            own, wanted = (one(**window.kwargs).logits.log_softmax(-1) for one in (model, dense))
        each = (wanted.exp() * (wanted - own)).sum(-1)
        measured.append(float(each[window.kwargs["decoder_attention_mask"].bool()].mean()))
    found = report.refinement
    assert found.held_out_after == pytest.approx(sum(measured) / len(measured), rel=1e-3)
    assert found.held_out_after < found.held_out_before


def test_passes_that_gain_nothing_leave_every_bit_and_the_best_one_stays():
    plain, worse = tiny_model("llama"), tiny_model("llama")
    prune_model(plain, BATCHES, sparsity=0.5, options=PruneOptions(max_iterations=5))
    events = []
    options = PruneOptions(refine=3, refine_rate=30.0, max_iterations=5)  # far too large: no pass can help
    report = prune_model(worse, BATCHES, sparsity=0.5, options=options, on_event=events.append)
    assert report.refinement.passes == report.refinement.steps == 0
    assert report.refinement.held_out_after == report.refinement.held_out_before
    assert same(state_of(plain), state_of(worse)) and "no pass improved" in str(report)
    told = [event for event in events if event.refining is not None]
    passes = [event.kind for event in told if event.kind != "refine_step"]
    assert passes == ["refine_start", *["refine_pass"] * 3, "refine_done"]
    assert [event.refining.step for event in told if event.kind == "refine_step"] == list(range(1, 28))


def test_a_pass_that_makes_things_worse_is_made_good_by_later_ones():
    model, told = tiny_model("llama"), []
    options = PruneOptions(refine=4, refine_rate=0.04, max_iterations=5)
    report = prune_model(model, BATCHES, sparsity=0.5, options=options, on_event=told.append)
    held_out = [event.refining.held_out for event in told if event.kind == "refine_pass"]
    assert held_out[0] > report.refinement.held_out_before > report.refinement.held_out_after == min(held_out)
    assert report.refinement.passes == 1 + held_out.index(min(held_out)) > 1


def test_the_rate_rises_and_falls():
    recipe = recipes.Recipe(1e-3, warm_up=0.1)
    shares = [recipe.share(step, 40) for step in range(40)]
    assert shares[0] == 0.25 and 0.97 < shares[3] < 1 and shares[3] == max(shares)
    assert all(after < before for before, after in itertools.pairwise(shares[3:])) and 0 < shares[-1] < 0.01
    assert recipes.Recipe(1e-3, cosine=False, warm_up=0.1).share(39, 40) == recipes.Recipe(1e-3).share(0, 40) == 1


def test_zeros_of_a_sparse_source_stay_zero_unless_they_may_grow():
    for regrow in (False, True):
        model = tiny_model("llama")
        once = prune_model(model, BATCHES, sparsity=0.7, options=PruneOptions(max_iterations=5))
        zeros = {name: model.get_parameter(name).detach() == 0 for name in once.masks}
        options = PruneOptions(refine=1, refine_rate=0.01, max_iterations=5, regrow=regrow)
        recorder = RefinedMemory()
        twice = prune_model(model, BATCHES, pattern="2:4", options=options, recorder=recorder)
        assert twice.refinement.passes
        revived = sum(int((zero & (model.get_parameter(name) != 0)).sum()) for name, zero in zeros.items())
        assert (revived > 0) is regrow
        if not regrow:
            recorder.refinement, again = None, tiny_model("llama")
            prune_model(again, BATCHES, sparsity=0.7, options=PruneOptions(max_iterations=5))
            prune_model(again, BATCHES, pattern="2:4", options=options, recorder=recorder)
            assert same(state_of(model), state_of(again))


def test_an_exception_in_a_step_leaves_the_pruned_model():
    plain, model = tiny_model("llama"), tiny_model("llama")
    prune_model(plain, BATCHES, sparsity=0.5, options=PruneOptions(max_iterations=5))
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    def stop(event) -> None:
        if event.kind == "refine_step" and event.refining.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_model(model, BATCHES, sparsity=0.5, options=REFINED, on_event=stop)
    assert same(state_of(plain), state_of(model))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"refine": -1}, "refine must be"),
        ({"refine_rate": 0.1}, "refine_rate is 0.1, but refine is 0"),
        ({"refine": 1, "refine_rate": 0.0}, "refine_rate must be"),
    ],
)
def test_what_makes_no_sense_is_refused(options, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneOptions(**options)


def test_one_window_is_refused_before_any_work():
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RelaxPruneError, match="refine needs at least 2 windows, for one is held out, got 1"):
        prune_model(model, padded_batches(1, windows=1), sparsity=0.5, options=REFINED)
    assert same(before, state_of(model))


def test_the_plan_counts_it(monkeypatch):
    model = tiny_model("llama")
    plain, refined = (
        plan_model(model, sparsity=0.5, solver="wanda", tokens=10**7, options=options, batches=BATCHES)
        for options in (PruneOptions(), PruneOptions(refine=3))
    )
    assert refined.prediction.seconds["refine"] > 0 and "refine" not in plain.prediction.seconds
    assert refined.added_bytes > plain.added_bytes
    request = PruneRequest.of(Target(sparsity=0.5), "wanda", PruneOptions(refine=3))
    less, more = (make_plan(model, request, TokenCounts(all=10**7, refining=tokens)) for tokens in (0, 10**7))
    assert more.added_bytes > less.added_bytes
    monkeypatch.setattr(Trial, "timed", lambda self, work: 1.0)
    times = [with_prediction(less, BATCHES, None, more).prediction.seconds["refine"] for more in ((), BATCHES * 8)]
    assert times[1] == pytest.approx(9 * times[0])


def test_batches_that_only_the_refinement_reads():
    plain, more, held_out = (tiny_model("llama") for _ in range(3))
    further = [{name: tensor.roll(1, 0) for name, tensor in batch.items()} for batch in BATCHES[:4]]
    reports = [
        prune_model(model, BATCHES[:8], sparsity=0.5, options=REFINED, refine_batches=batches)
        for model, batches in ((plain, ()), (more, further))
    ]
    assert [report.refinement.held_out_windows for report in reports] == [8, 12]  # a fourth of 32 and of 48
    assert all(torch.equal(reports[0].masks[name], mask) for name, mask in reports[1].masks.items())
    assert not same(state_of(plain), state_of(more))
    with pytest.raises(RelaxPruneError, match="refine_batches are for options with refine, got 4 and refine=0"):
        prune_model(held_out, BATCHES, sparsity=0.5, refine_batches=further)
    further[0]["input_ids"] = torch.full((4, 24), 10**6)
    with pytest.raises(RelaxPruneError, match="1000000"):
        prune_model(held_out, BATCHES, sparsity=0.5, options=REFINED, refine_batches=further[:1])
    assert same(state_of(held_out), state_of(tiny_model("llama")))


def test_the_model_writes_more_text_for_the_refinement(place, tmp_path, capsys):
    words = ("--refine", "1", "--windows", "8", "--self-share", "0")
    records = []
    for name, more in (("more", ()), ("same", ("--refine-samples", "8")), ("none", ("--refine-samples", "0"))):
        assert main(arguments(place, tmp_path / name, *words, *more)) == 0
        records.append(json.loads((tmp_path / name / "relaxprune.json").read_text()))
    read = [record["fingerprint"]["calibration"]["refine"] for record in records]
    assert [facts["windows"] for facts in read] == [8, 8, 0] and read[0]["sha256"] == read[1]["sha256"] is not None
    assert read[0]["sha256"] != records[0]["fingerprint"]["calibration"]["sha256"] and read[2]["sha256"] is None
    assert main(arguments(place, tmp_path / "same", *words, "--resume")) == 0  # finished: nothing is written again
    windows = [record["report"]["refinement"]["held_out_windows"] for record in records]
    assert windows[0] == windows[1] == 2 * windows[2]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("more", "same", "none")]
    assert weights[0] == weights[1] != weights[2]
    capsys.readouterr()
    assert main(arguments(place, tmp_path / "no", "--refine-samples", "3")) == 2
    assert "--refine-samples is 3, but --refine is 0" in only_sentence(capsys)
    one = ("--windows", "1", "--self-share", "0", "--refine", "1")
    assert main(arguments(place, tmp_path / "one", *one, "--refine-samples", "3")) == 0
    assert main(arguments(place, tmp_path / "few", *one, "--refine-samples", "0")) == 2
    assert "refine needs at least 2 windows" in only_sentence(capsys)


def test_other_samples_than_before_are_refused(place, tmp_path, monkeypatch, capsys):
    words = ("--refine", "1", "--windows", "8", "--self-share", "0")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_refinement", interrupting(RunFolder.save_refinement, 1))
        assert main(arguments(place, tmp_path / "run", *words)) == 130
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(run, "_OTHER_SEED", 7)  # as another processor would round to other tokens
        assert main(arguments(place, tmp_path / "run", *words, "--resume")) == 2
    assert "calibration.refine.sha256" in only_sentence(capsys)
    assert main(arguments(place, tmp_path / "run", *words, "--resume")) == 0


def test_a_model_that_looks_both_ways_goes_without(place, tmp_path, capsys):
    model = BertForMaskedLM(BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    model.save_pretrained(tmp_path / "tiny")
    AutoTokenizer.from_pretrained(place / "tiny").save_pretrained(tmp_path / "tiny")
    words = ("--calibration", str(place / "text.txt"), "--windows", "8", "--refine", "1")
    assert not can_sample(model) and can_sample(tiny_model("llama"))
    assert main(arguments(tmp_path, tmp_path / "out", *words)) == 0
    calibration = json.loads((tmp_path / "out/relaxprune.json").read_text())["fingerprint"]["calibration"]
    assert calibration["windows"] == 8 and calibration["refine"]["windows"] == 0
    assert main(arguments(tmp_path, tmp_path / "no", *words, "--refine-samples", "4")) == 2
    assert "must continue text token by token" in only_sentence(capsys)


def test_every_fourth_window_that_counts_is_held_out():
    marks = torch.ones(6, 8, dtype=torch.long)
    marks[3] = 0
    batch = {"input_ids": torch.ones(6, 8, dtype=torch.long), "attention_mask": marks}
    windows = Windows.of(read_batches([batch]))
    assert len(windows.batches) == 5 and windows.held_out == [1] and windows.tuned == [0, 2, 3, 4]
    windows = Windows.of(read_batches([batch, torch.ones(3, 8, dtype=torch.long)]))
    assert len(windows.batches) == 8 and windows.held_out == [1, 5]


def test_from_the_command_line_and_resumed(place, tmp_path, monkeypatch, capsys):
    words = ("--refine", "1", "--refine-rate", "0.002", "--windows", "16")
    whole = tmp_path / "whole"
    assert main(arguments(place, whole, *words)) == 0
    said = capsys.readouterr().out
    assert "refining, pass 0 of 1" in said and "refining, pass 1 of 1" in said and "refine " in said
    record = json.loads((whole / "relaxprune.json").read_text())
    assert record["report"]["refinement"]["passes"] == 1 and record["fingerprint"]["settings"]["refine"] == 1
    assert "tuned together towards the predictions" in (whole / "README.md").read_text()
    assert main(["verify", str(whole)]) == 0
    assert main(["report", str(whole)]) == 0
    assert "The model refined as a whole" in (whole / "report.html").read_text()

    in_refining, after = tmp_path / "in-refining", tmp_path / "after"
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_refinement", interrupting(RunFolder.save_refinement, 1))
        assert main(arguments(place, in_refining, *words)) == 130
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", interrupting(RunFolder.finish, 1))
        assert main(arguments(place, after, *words)) == 130
    assert (after / ".relaxprune/refined.safetensors").is_file()
    undone, damaged = (shutil.copytree(after, tmp_path / name) for name in ("undone", "damaged"))
    (undone / ".relaxprune/blocks/00001.safetensors").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(model_refiner.ModelRefiner, "run", None)  # what is finished is not repeated
        assert main(arguments(place, after, *words, "--resume")) == 0
    assert main(arguments(place, in_refining, *words, "--resume")) == 0
    assert main(arguments(place, undone, *words, "--resume")) == 0
    file = damaged / ".relaxprune/refined.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    assert main(arguments(place, damaged, *words, "--resume")) == 2
    assert "delete it to refine the model again, or add --discard-damaged" in only_sentence(capsys)
    assert main(arguments(place, damaged, *words, "--resume", "--discard-damaged")) == 0
    for other in (in_refining, after, undone, damaged):
        for name in ("model.safetensors", "masks.safetensors"):
            assert (whole / name).read_bytes() == (other / name).read_bytes(), (other, name)


def test_a_precision_that_would_be_rounded_is_refused(place, tmp_path, capsys):
    words = arguments(place, tmp_path / "out", "--refine", "1", "--dtype", "bfloat16")
    assert main(words) == 2
    assert "new weights must be computed in the dtype that the model stores" in only_sentence(capsys)
