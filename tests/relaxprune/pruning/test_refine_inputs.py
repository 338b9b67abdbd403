"""Which predictions and which text a model is refined on, and what is refused before any work."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from torch import Tensor, nn

from relaxprune.inputs.batches import read_batches, split_windows
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.options.target import Target
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.request import PruneRequest
from relaxprune.pruning.tuning import predictions
from relaxprune.pruning.tuning.held_out import Windows
from relaxprune.pruning.tuning.predictions import DensePredictions
from relaxprune.solvers import make_solver

from ..command_line import arguments, only_sentence
from ..tiny_models import COMMON, GROUPED, padded_batches, tiny_model

HALVES = (torch.bfloat16, torch.float16)
PRUNED = {"sparsity": 0.5, "solver": "wanda"}


def of_family(family: str, dtype: torch.dtype) -> nn.Module:
    """Return a tiny model whose logits are its head's outputs, or are scaled or capped as its configuration says."""
    import transformers

    configs = {
        "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=2.0),
        "cohere": lambda: transformers.CohereConfig(**GROUPED, logit_scale=0.3),
        "granite": lambda: transformers.GraniteConfig(**GROUPED, logits_scaling=7.0),
        "neox": lambda: transformers.GPTNeoXConfig(**COMMON),
    }
    if family not in configs:
        return tiny_model(family, dtype)
    torch.manual_seed(0)
    config = configs[family]()
    config.initializer_range = 0.3
    return transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()


def changed(model: nn.Module, change) -> nn.Module:
    """Return the model with other logits than its head's."""
    forward = model.forward

    @functools.wraps(forward)
    def run(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs["logits"] = change(outputs.logits)
        return outputs

    model.forward = run
    return model


def is_recognised(model: nn.Module) -> bool:
    """Return whether the logits of a model are taken to be made by its head."""
    windows = Windows.of(read_batches(padded_batches(2, windows=2, length=40)))
    with torch.no_grad():
        return DensePredictions(model, windows, [])._head is not None


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2", "cohere", "granite"])
def test_heads_of_real_families_are_recognised(family, dtype):
    assert is_recognised(of_family(family, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_else_a_model_does_to_its_logits_is_seen(dtype):
    bias = torch.linspace(-0.05, 0.05, 64).to(dtype)
    changes = [*(functools.partial(torch.mul, other=factor) for factor in (0.99, 0.9, 0.8)), lambda x: x + bias]
    assert not any(is_recognised(changed(tiny_model("llama", dtype), change)) for change in changes)
    assert is_recognised(changed(tiny_model("llama", dtype), lambda logits: logits.float()))


class Routed(nn.Module):
    """A model whose experts read a whole batch or nothing of it; ``idle`` is never called itself."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
            self.idle = nn.Sequential(nn.Linear(16, 16))

        def forward(self, states: Tensor) -> Tensor:
            place = int(states[0, 0, 0].item() * 1e4) % 2
            return states + self.experts[place](states) + self.idle[0](states)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([self.Block() for _ in range(3)])

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


def test_parts_that_are_not_called_on_every_batch(caplog):
    batches = [torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    with caplog.at_level(logging.WARNING, "relaxprune"):
        report = prune_model(Routed().eval(), batches, **PRUNED, options=PruneOptions(tune=2, tune_by="part"))
    parts = {tuning.part for tuning in report.tunings}
    assert parts == {"experts.0", "experts.1"} and all(tuning.held_out_before > 0 for tuning in report.tunings)
    assert any(tuning.epochs for tuning in report.tunings)
    assert "no batch calls 'idle' of block 0, which is not tuned" in caplog.text
    assert all(f"layers.{block}.idle.0.weight" in report.masks for block in range(3))


def test_a_decoder_row_of_padding_does_not_count():
    import transformers

    sizes = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "vocab_size": 64}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    generator, batches = torch.Generator().manual_seed(2), []
    for number in range(4):
        marks = torch.ones(3, 10, dtype=torch.long)
        marks[number % 2] = 0
        ids = (torch.randint(3, 60, (3, length), generator=generator) for length in (16, 10))
        batches.append(
            {**dict(zip(("input_ids", "decoder_input_ids"), ids, strict=True)), "decoder_attention_mask": marks}
        )
    report = prune_model(model, batches, **PRUNED, options=PruneOptions(refine=1))
    assert report.refinement.held_out_windows == 2


def test_only_token_windows_are_split():
    tokens = torch.ones(3, 5, dtype=torch.long)
    whole = (torch.ones(10, 3, 8), torch.ones(3, 5), torch.ones(7, dtype=torch.float32))
    assert [len(split_windows(read_batches([batch])[0])) for batch in (tokens, *whole)] == [3, 1, 1, 1]
    mapped = (
        ({"input_ids": tokens}, 3),
        ({"input_ids": tokens, "attention_mask": tokens}, 3),
        ({"input_ids": tokens, "labels": torch.ones(2, 5)}, 1),
        ({"input_ids": tokens, "pixel_values": torch.ones(3, 3, 4, 4)}, 1),
        ({"states": torch.ones(10, 3, 8)}, 1),
    )
    for batch, count in mapped:
        assert len(split_windows(read_batches([batch])[0])) == count


def test_predictions_that_do_not_fit_into_memory_are_refused(monkeypatch):
    model, options = tiny_model("llama"), PruneOptions(refine=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens = 2 * 2 * 12 - 3
    for change, width in ((None, 32), (lambda logits: logits * 0.9, 64)):
        refined = model if change is None else changed(model, change)
        monkeypatch.setattr(predictions, "free_bytes", lambda width=width: 4 * width * tokens - 1)
        with pytest.raises(RelaxPruneError, match=rf"refine keeps {width} numbers .* GiB for 4 windows, got .* GiB of"):
            prune_model(refined, padded_batches(2), **PRUNED, options=options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_too_few_windows_are_refused_before_the_model_is_loaded(place, tmp_path, monkeypatch, capsys):
    from relaxprune.cli import main

    monkeypatch.setattr("relaxprune.models.loading.load_model", None)
    assert main(arguments(place, tmp_path / "out", "--refine", "1", "--windows", "1", "--refine-samples", "0")) == 2
    assert "refine needs at least 2 windows, for one is held out, got 1" in only_sentence(capsys)
    request = PruneRequest.of(Target(sparsity=0.5), "wanda", PruneOptions(refine=1))
    request.check_batches(1, 2)
    with pytest.raises(RelaxPruneError, match="refine needs at least 2 windows"):
        request.check_batches(1, 1)


@pytest.mark.parametrize("options", [PruneOptions(), PruneOptions(tune=1), PruneOptions(refine=1)])
def test_models_made_in_inference_mode_are_refused(options):
    with torch.inference_mode():
        model = tiny_model("llama")
    with pytest.raises(RelaxPruneError, match=r"got inference tensors; make or load it outside of torch\.inference"):
        prune_model(model, padded_batches(), **PRUNED, options=options)
    model = tiny_model("llama")
    with torch.inference_mode():
        model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * 1
    if options.new_values:
        with pytest.raises(RelaxPruneError, match=r"got the inference tensor 'model\.rotary_emb\.inv_freq'"):
            prune_model(model, padded_batches(), **PRUNED, options=options)


@pytest.mark.parametrize("options", [PruneOptions(), PruneOptions(tune=1), PruneOptions(refine=1)])
def test_text_made_in_inference_mode_is_as_good(options):
    found = []
    for mode in (True, False):
        with torch.inference_mode(mode):
            batches = [torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
        model = Routed().eval()
        prune_model(model, batches, **PRUNED, options=options)
        found.append(model.state_dict())
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_a_shrinkage_that_is_not_decided_is_refused():
    target = Target(sparsity=0.5).for_solver(make_solver("wanda"))
    for statistics, fine in (({}, False), ({"shrinkage": 0.0}, True), ({"select": (0.0, 0.2)}, True)):
        options = PruneOptions(weights="keep", statistics=StatisticsOptions(**statistics))
        if fine:
            PruneRequest(target=target, solver=make_solver("wanda"), options=options)
        else:
            with pytest.raises(RelaxPruneError, match=r"shrinkage must be decided or selected, got None: use Prune"):
                PruneRequest(target=target, solver=make_solver("wanda"), options=options)
