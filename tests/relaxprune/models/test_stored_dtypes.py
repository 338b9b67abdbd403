"""Checkpoints that mix dtypes: what is saved has every tensor's own dtype, and kept entries their bits."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3MoeForCausalLM

from relaxprune.models.checkpoint import SINGLE_FILE
from relaxprune.models.loading import LoadOptions, load_model
from relaxprune.models.saved_model import verify_saved_model
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import RelaxPruneError
from relaxprune.pruning.pipeline import prune_model

from ..saved_models import UP, refused, rewrite
from ..tiny_models import tiny_model

WIDE = "model.layers.1.mlp.down_proj.weight"  # a layer that is pruned, in float32 among bfloat16 ones
TOKENS = torch.arange(3, 51).view(3, 16)


def mix(tensors):
    """bfloat16 with norms and one linear layer in float32."""
    return {name: tensor if "norm" in name or name == WIDE else tensor.bfloat16() for name, tensor in tensors.items()}


@pytest.fixture
def mixed_folder(tiny_folder):
    rewrite(tiny_folder, mix)
    return tiny_folder


def test_loading_keeps_dtypes_and_bits_and_computes_as_transformers_does(mixed_folder):
    model = load_model(str(mixed_folder)).model
    plain = AutoModelForCausalLM.from_pretrained(mixed_folder, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)
    state, stored = model.state_dict(), load_file(mixed_folder / SINGLE_FILE)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32, torch.bfloat16}
    assert all(state[name].dtype == stored[name].dtype for name in stored)
    assert all(torch.equal(state[name], stored[name]) for name in stored)


def test_a_pruned_model_is_saved_in_the_dtypes_of_its_source(mixed_folder, tmp_path):
    model = load_model(str(mixed_folder)).model
    report = prune_model(model, [TOKENS], sparsity=0.5, options=PruneOptions(max_iterations=4, polish=None))
    model.save_pretrained(tmp_path / "out")
    assert verify_saved_model(tmp_path / "out", model, report.masks).pruned_layers == 14
    before, after = load_file(mixed_folder / SINGLE_FILE), load_file(tmp_path / "out" / SINGLE_FILE)
    assert WIDE in report.masks and UP in report.masks
    for name, tensor in after.items():
        mask = report.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor[mask], before[name][mask])
        assert not tensor[~mask].any()


def test_a_tensor_that_its_class_forces_to_float32_is_kept_as_stored(tmp_path, tiny_tokenizer):
    forced = "model.layers.1.mlp.gate.e_score_correction_bias"
    source = tiny_model("deepseek_v3")
    with torch.no_grad():
        source.get_submodule("model.layers.1.mlp.gate").e_score_correction_bias.normal_()
    source.bfloat16().save_pretrained(tmp_path / "in")
    tiny_tokenizer.save_pretrained(tmp_path / "in")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.bfloat16)
    assert plain.state_dict()[forced].dtype == torch.float32
    model = load_model(str(tmp_path / "in")).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, plain(TOKENS).logits)
    model.save_pretrained(tmp_path / "out")
    verify_saved_model(tmp_path / "out", model, {})
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / SINGLE_FILE).values()} == {torch.bfloat16}


def test_a_forced_first_parameter_does_not_make_the_rest_a_minority(tmp_path, monkeypatch, tiny_tokenizer):
    """Fused experts have no tensor of their stored names; they are in the dtype of most, whatever comes first."""
    tiny_model("qwen3_moe", torch.bfloat16).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(Qwen3MoeForCausalLM, "_keep_in_fp32_modules_strict", {"embed_tokens"})
    loaded = load_model(str(tmp_path))
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.bfloat16}


def test_verification_sees_a_kept_entry_that_was_rounded(mixed_folder, tmp_path):
    """Only bits below bfloat16's precision change: a reload that casts would not see it."""
    model = load_model(str(mixed_folder)).model
    model.save_pretrained(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / SINGLE_FILE)
    tensors[WIDE] = tensors[WIDE].bfloat16().float()
    save_file(tensors, tmp_path / "out" / SINGLE_FILE, {"format": "pt"})
    with pytest.raises(RelaxPruneError, match=rf"'{WIDE}' is not what was written"):
        verify_saved_model(tmp_path / "out", model, {})


def test_a_failing_forward_pass_leaves_the_stored_bits(mixed_folder):
    model = load_model(str(mixed_folder)).model
    before = model.state_dict()["model.norm.weight"].clone()
    with pytest.raises(IndexError):
        model(TOKENS + 1000)
    with pytest.raises(RuntimeError):
        model.model.norm(torch.zeros(3, 5))
    after = model.state_dict()["model.norm.weight"]
    assert after.dtype == torch.float32 and torch.equal(after, before)


def test_an_explicit_dtype_casts_everything(mixed_folder):
    model = load_model(str(mixed_folder), LoadOptions(dtype="float32")).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_names_without_the_prefix_of_the_model(mixed_folder):
    rewrite(mixed_folder, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    state = load_model(str(mixed_folder)).model.state_dict()
    assert state[WIDE].dtype == torch.float32 and state[UP].dtype == torch.bfloat16


def test_a_wide_tensor_that_the_model_fuses_with_others_is_refused(tmp_path):
    """Mixture-of-experts checkpoints hold expert by expert what the model holds in one tensor."""
    tiny_model("qwen3_moe").save_pretrained(tmp_path)
    expert = "model.layers.0.mlp.experts.2.down_proj.weight"
    rewrite(tmp_path, lambda tensors: {name: t if name == expert else t.bfloat16() for name, t in tensors.items()})
    refused(tmp_path, rf"stores '{expert}' as F32, unlike most of its tensors")
