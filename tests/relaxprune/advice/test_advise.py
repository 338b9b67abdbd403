"""Advice: every device gets an answer with its source at every size, and what is not measured is not promised."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import GPT2Config, MixtralConfig

from relaxprune import RelaxPruneError
from relaxprune.advice import DEVICES, ModelSizes, advise, model_sizes
from relaxprune.advice.figures import FIGURES
from relaxprune.cli import main
from tests.relaxprune.tiny_llama import save_tiny_llama

PAGE = Path(__file__).parents[3] / "docs" / "which-pattern.md"
SIZES = (1, 2, 16, 63, 64, 128, 512, 1023, 1024, 2048, 3072, 65536)
LLAMA = ModelSizes("llama", 6_738_415_616, Counter({(4096, 4096): 128, (11008, 4096): 64, (4096, 11008): 32}))


def test_eight_devices_and_every_number_of_tokens_have_an_answer():
    assert len(DEVICES) == 8
    for tokens in SIZES:
        found = advise(LLAMA, batch=tokens, tokens=1)
        assert {(one.device, one.phase) for one in found} == {(d, p) for d in DEVICES for p in ("decode", "prefill")}
        for one in found:
            assert one.tokens == tokens and one.figure.covers(tokens) and one.figure.device == one.device
            assert re.fullmatch(r"https://[^ ]+", one.figure.source)
            assert one.pays == (one.figure.ask is not None)
            if one.pays:  # then something faster was measured, and no other way is faster
                assert one.figure.speed > 1.05
                assert all((other.speed or 0) <= one.figure.speed for other in one.others if other.ask is not None)


def test_a_reason_to_stay_dense_never_says_that_pruning_is_faster():
    for figure in FIGURES:
        assert figure.device in DEVICES and (figure.speed is None or figure.speed > 0)
        assert figure.ask is None or (figure.speed is not None and figure.ask.split()[0] in ("--pattern", "--sparsity"))
        assert figure.ask is not None or figure.speed is None or figure.speed <= 1.05


def test_bytes_are_those_of_the_form_and_of_what_was_published():
    [decode, _] = advise(LLAMA, ["4090"])
    # MACKO's README measures 13.59 GB dense and 8.87 GB for Llama-2-7B, with what a run needs beside the weights.
    assert LLAMA.bytes() == pytest.approx(13.48e9, rel=1e-3)
    assert decode.figure.ask == "--sparsity 0.5" and decode.model_bytes == pytest.approx(8.62e9, rel=1e-2)
    assert LLAMA.bytes(8) - LLAMA.bytes(0) == LLAMA.prunable


def test_layers_that_a_pattern_does_not_divide_are_counted():
    odd = ModelSizes("odd", 100, Counter({(4, 6): 2, (4, 8): 1}))
    assert (
        odd.misfits("--pattern 2:4") == 2 and odd.misfits("--pattern 6:8") == 2 and odd.misfits("--sparsity 0.5") == 0
    )
    assert odd.prunable == 80 and odd.widest == 8 and odd.bytes(0, "--pattern 2:4") == 2 * (100 - 32)
    assert odd.left("--pattern 2:4") == "of 3 layers 2 have columns that 2:4 does not divide"


def test_nothing_is_promised_for_layers_that_no_form_takes():
    kinds = Counter({("Conv1D", (16, 8)): 4, ("Expert", (4, 8)): 2})
    none = ModelSizes("gpt2", 1000, Counter(), kinds)
    for one in advise(none, ["h100", "4090"], tokens=512):
        assert not one.pays and one.model_bytes is None
    prefill = advise(none, ["h100"], tokens=512)[1]
    assert "4 are Conv1D, which no form measured here takes; 2 are fused experts" in prefill.figure.measured
    assert none.bytes(0) == none.bytes() == 2000 and none.in_blocks == 576 and none.layers == 6
    some = ModelSizes("mixtral", 1000, Counter({(8, 8): 2}), kinds)
    prefill = advise(some, ["h100"], tokens=512)[1]
    assert prefill.pays and prefill.model_bytes == some.bytes(5) and "of 8 layers 4 are Conv1D" in prefill.left


def test_a_config_tells_the_kinds_of_its_layers(tmp_path, capsys):
    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16, n_positions=8).save_pretrained(tmp_path)
    sizes = model_sizes(str(tmp_path))
    assert not sizes.shapes and {kind for kind, _ in sizes.others} == {"Conv1D"} and sizes.layers == 4
    assert main(["advise", str(tmp_path), "--device", "h100"]) == 0
    text = capsys.readouterr().out
    assert "stay dense" in text and "--pattern" not in text and "4 are Conv1D" in text
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    MixtralConfig(**small, **heads).save_pretrained(tmp_path)
    sizes = model_sizes(str(tmp_path))
    assert sizes.shapes.total() == 4 and {kind for kind, _ in sizes.others} == {"Expert"}


def test_what_cannot_be_right_is_refused():
    with pytest.raises(RelaxPruneError, match=r"device 'h10' is unknown: use one of h100, .*did you mean"):
        advise(LLAMA, ["h10"])
    with pytest.raises(RelaxPruneError, match="batch must be"):
        advise(LLAMA, batch=0)


def test_the_command_reads_a_config_and_no_weight(tmp_path, capsys):
    place = tmp_path / "tiny"
    save_tiny_llama(place)
    (place / "model.safetensors").unlink()
    sizes = model_sizes(str(place))
    assert 0 < sizes.prunable < sizes.parameters
    assert main(["advise", str(place), "--device", "h100", "--device", "epyc", "--batch", "4", "--tokens", "100"]) == 0
    text = capsys.readouterr().out
    assert "H200, decode, 4 tokens at once: stay dense" in text and "prefill, 400 tokens at once: --pattern 2:4" in text
    assert "AMD EPYC" in text and "4090" not in text and "fewer than in most of these measurements" in text
    assert main(["advise", str(place), "--device", "tpu"]) == 2


def test_the_page_shows_every_figure():
    text = " ".join(PAGE.read_text().split())
    for figure in FIGURES:
        assert figure.source in text, figure
        if figure.speed is not None and figure.ask is not None:
            assert f"{figure.speed:g}" in text
