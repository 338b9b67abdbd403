"""Encoder-decoder models: each layer counts the real tokens of the stream that it reads, whatever the shapes."""

from __future__ import annotations

import pytest
import torch
import transformers

from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model

QUICK = PruneOptions(max_iterations=2, polish=None, include=("*",))
SHAPES = {"d_model": 16, "vocab_size": 40, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}


def model_of(family):
    torch.manual_seed(0)
    if family == "t5":
        config = transformers.T5Config(d_ff=24, d_kv=8, num_heads=2, num_layers=2, tie_word_embeddings=False, **SHAPES)
        return transformers.T5ForConditionalGeneration(config).eval()
    sizes = {f"{stack}_{name}": value for stack in ("encoder", "decoder")
             for name, value in {"layers": 2, "ffn_dim": 24, "attention_heads": 2}.items()}  # fmt: skip
    config = transformers.BartConfig(**SHAPES, **sizes, max_position_embeddings=32, bos_token_id=1)
    return transformers.BartForConditionalGeneration(config).eval()


def encoder_of(family):
    """An encoder alone, whose config still says that it is an encoder-decoder model."""
    torch.manual_seed(0)
    if family == "umt5":
        config = transformers.UMT5Config(d_ff=24, d_kv=8, num_heads=2, num_layers=2, **SHAPES)
        return transformers.UMT5EncoderModel(config).eval()
    return model_of(family).model.get_encoder() if family == "bart" else model_of(family).get_encoder()


def batch_of(encoder=(6, 3), decoder=(5, 6), length=6):
    """Two windows with as many real tokens as given on each side, padded to one length: the shapes tell nothing."""
    mask, decoder_mask = (torch.arange(length) < torch.tensor(real).unsqueeze(1) for real in (encoder, decoder))
    tokens, decoder_tokens = torch.randint(3, 40, (2, 2, length))
    return {
        "input_ids": tokens * mask,
        "attention_mask": mask.long(),
        "decoder_input_ids": decoder_tokens * decoder_mask,
        "decoder_attention_mask": decoder_mask.long(),
    }


def is_cross_key_or_value(name):
    return ("EncDecAttention" in name or "encoder_attn" in name) and name.split(".")[-1] in (
        "k",
        "v",
        "k_proj",
        "v_proj",
    )


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_every_layer_counts_the_real_tokens_of_its_own_stream(family):
    model = model_of(family)
    report = prune_model(model, [batch_of(), batch_of((2, 2), (6, 6))], sparsity=0.5, options=QUICK)
    tokens = {layer.name: layer.inputs.tokens for layer in report.layers}
    of_encoder = {
        name for name in tokens if ("encoder." in name and "decoder." not in name) or is_cross_key_or_value(name)
    }
    assert {tokens[name] for name in of_encoder} == {6 + 3 + 2 + 2}
    assert {tokens[name] for name in set(tokens) - of_encoder} == {5 + 6 + 6 + 6}
    assert len([name for name in tokens if is_cross_key_or_value(name)]) == 4
    assert len(tokens) > 20


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_gram_of_cross_attention_keys_has_only_real_encoder_tokens(family):
    """What the padding holds must not matter: other padding, the same masks and objectives."""
    reports = []
    for pad in (0, 7):
        model, batch = model_of(family), batch_of_seed()
        batch["input_ids"] = torch.where(batch["attention_mask"] == 0, pad, batch["input_ids"])
        reports.append(prune_model(model, [batch], sparsity=0.5, options=QUICK))
    one, other = reports
    assert [layer.loss.dense_energy for layer in one.layers] == pytest.approx(
        [layer.loss.dense_energy for layer in other.layers], rel=1e-5
    )


def batch_of_seed():
    torch.manual_seed(3)
    return batch_of()


@pytest.mark.parametrize("family", ["umt5", "bart", "t5"])
def test_an_encoder_alone_has_one_stream(family):
    model = encoder_of(family)
    assert model.config.is_encoder_decoder
    batches = [{name: batch_of()[name] for name in ("input_ids", "attention_mask")}]
    report = prune_model(model, batches, sparsity=0.5, options=QUICK)
    assert len(report.layers) >= 12
    assert {layer.inputs.tokens for layer in report.layers} == {6 + 3}


@pytest.mark.parametrize("hidden", ["get_decoder", "get_encoder"])
def test_a_model_that_does_not_name_both_of_its_stacks_is_refused(hidden, monkeypatch):
    model = model_of("t5")
    monkeypatch.setattr(model, hidden, lambda: model)
    batch = batch_of()
    labelled = {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "labels": torch.ones(2, 3).long(),
    }
    for given in (batch, labelled):
        with pytest.raises(RelaxPruneError, match=rf"model must name its {hidden[4:]} \({hidden}\)"):
            prune_model(model, [given], sparsity=0.5, options=QUICK)


def test_arguments_of_a_decoder_are_refused_where_none_is_named():
    model = encoder_of("bart")
    with pytest.raises(RelaxPruneError, match=r"model must name its encoder \(get_encoder\)"):
        prune_model(model, [batch_of()], sparsity=0.5, options=QUICK)


def test_without_a_decoder_mask_all_decoder_tokens_count():
    batch = batch_of()
    del batch["decoder_attention_mask"]
    report = prune_model(model_of("t5"), [batch], sparsity=0.5, options=PruneOptions(max_iterations=2, polish=None))
    # The encoder has a mask, and the decoder reads its tokens through the keys and values of its cross-attention.
    for layer in report.layers:
        encoded = layer.name.startswith("encoder.") or is_cross_key_or_value(layer.name)
        assert layer.inputs.tokens == (9 if encoded else 12), layer.name


def test_a_layer_that_reads_both_streams_is_refused_by_name():
    model = model_of("t5")
    model.decoder.block[0].layer[2] = model.encoder.block[0].layer[1]  # one feed-forward network for both
    with pytest.raises(
        RelaxPruneError, match=r"layer 'encoder.block.0.layer.1.DenseReluDense.wi' must read .* got both"
    ):
        prune_model(model, [batch_of()], sparsity=0.5, options=QUICK)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_decoder_mask_of_another_shape_is_refused():
    batch = batch_of() | {"decoder_attention_mask": torch.ones(2, 1, 6)}
    with pytest.raises(
        RelaxPruneError, match=r"decoder_attention_mask must have the shape \(batch, tokens\), got \(2, 1, 6\)"
    ):
        prune_model(model_of("t5"), [batch], sparsity=0.5)


def test_padding_in_labels_that_nothing_marks_is_refused():
    batch = {"input_ids": torch.randint(3, 40, (2, 4)), "labels": torch.tensor([[5, 6, 2], [7, 2, -100]])}
    with pytest.raises(RelaxPruneError, match=r"labels must come with a decoder_attention_mask .* in batch 1"):
        prune_model(model_of("t5"), [batch_of(), batch], sparsity=0.5)


def test_hooks_are_gone():
    model = model_of("bart")
    prune_model(model, [batch_of()], sparsity=0.5, options=QUICK)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert len(find_layers(model)[0]) > 20
