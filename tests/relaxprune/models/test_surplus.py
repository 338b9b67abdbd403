"""What a source holds beside the model: tensors that transformers drops, and files; all of it must come out again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from relaxprune.models.checkpoint import INDEX_FILE, SINGLE_FILE, weight_files
from relaxprune.models.loading import load_model
from relaxprune.models.side_files import side_files
from relaxprune.models.surplus import Surplus
from relaxprune.models.unused_tensors import UnusedTensors, find_unused, find_unused_gguf
from relaxprune.problems import RelaxPruneError
from relaxprune.support.tensor_bits import same_bits

from ..saved_models import edit_config, refused, rewrite, shard
from ..tiny_models import config_of, tiny_model

# Names of tensors that loaders drop: some are reported, some are on a list of what may be missing, some are renamed.
EXTRAS = {
    "multi-token prediction": {"model.layers.3.eh_proj.weight": (16, 32), "model.layers.3.q_proj.weight": (16, 16)},
    "vision tower": {"visual.patch_embed.proj.weight": (4, 3, 2, 2), "visual.blocks.0.attn.qkv.bias": (12,)},
    "score head": {"score.weight": (2, 16), "classifier.bias": (2,)},
    "rotary buffers": {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,), "model.rotary_emb.inv_freq": (4,)},
}  # fmt: skip


def extras(kind: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: torch.randn(shape).to(dtype) for name, shape in EXTRAS[kind].items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("shards", [False, True])
def test_every_tensor_of_the_source_is_saved_again(tiny_folder, tmp_path, kind, dtype, shards):
    added = extras(kind, dtype)
    rewrite(tiny_folder, lambda tensors: tensors | added)
    if shards:
        shard(tiny_folder)
    loaded = load_model(str(tiny_folder))
    assert set(loaded.surplus.tensors.files) == set(added)
    out = tmp_path / "out"
    loaded.model.save_pretrained(out, max_shard_size="4KB" if shards else "1GB")
    loaded.surplus.tensors.append_to(out)
    assert (out / INDEX_FILE).is_file() is shards
    names = weight_files(out)
    written = {name: tensor for file in names for name, tensor in load_file(out / file).items()}
    source = {
        name: tensor for file in weight_files(tiny_folder) for name, tensor in load_file(tiny_folder / file).items()
    }
    assert set(written) == set(source) and all(same_bits(written[name], source[name]) for name in source)
    assert not loaded.surplus.tensors.differences(out)
    again = load_model(str(save_rest(loaded, out)))
    assert set(again.surplus.tensors.files) == set(added)
    if shards:
        index = json.loads((out / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in written.values())


def save_rest(loaded, out: Path) -> Path:
    loaded.tokenizer.save_pretrained(out)
    return out


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "deepseek_v3", "opt", "gemma3", "phi3"])
def test_nothing_is_left_of_what_save_pretrained_writes(family, tmp_path):
    model = tiny_model(family)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not find_unused(again, tmp_path).files


def test_a_checkpoint_of_the_base_model_is_used_whole(tmp_path):
    model = tiny_model("gpt2")
    model.transformer.save_pretrained(tmp_path)  # no prefix, as on the hub
    rewrite(tmp_path, lambda tensors: tensors | {"h.0.attn.masked_bias": torch.tensor(-1e4)})
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(find_unused(again, tmp_path).files) == {"h.0.attn.masked_bias"}


def test_experts_that_are_merged_are_told_from_experts_that_are_dropped(tmp_path):
    model = tiny_model("deepseek_v3")
    model.save_pretrained(tmp_path)
    dropped = {f"model.layers.3.mlp.experts.{index}.up_proj.weight": torch.randn(16, 32) for index in range(4)}
    rewrite(tmp_path, lambda tensors: tensors | dropped)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert set(find_unused(again, tmp_path).files) == set(dropped)


def test_a_tensor_that_a_tied_model_would_lose_is_refused(tiny_folder):
    rewrite(tiny_folder, lambda tensors: tensors | {"norm.weight": torch.full((16,), 0.5)})  # also model.norm.weight
    assert "norm.weight" in refused(tiny_folder, "other values than the model has")


def test_a_gguf_file_with_a_tensor_that_no_model_has(tmp_path):
    path = tmp_path / "model.gguf"
    config = config_of("llama")
    state = tiny_model("llama").state_dict()
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}  # fmt: skip
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}  # fmt: skip
    names |= {f"model.layers.{i}.{a}.weight": f"blk.{i}.{b}.weight" for i in range(3) for a, b in parts.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for name, value in (("block_count", 3), ("context_length", 64), ("embedding_length", 32), ("head_count", 4),
                        ("feed_forward_length", 48), ("head_count_kv", 2)):  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    for name, place in names.items():
        writer.add_tensor(place, state[name].numpy())
    frequencies = np.arange(4, dtype=np.float32)
    writer.add_tensor("rope_freqs.weight", frequencies)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = transformers.AutoModelForCausalLM.from_config(config)
    unused = find_unused_gguf(model, path)
    assert set(unused.files) == {"rope_freqs.weight"}
    assert unused.read("rope_freqs.weight").tolist() == frequencies.tolist()


# -- files


@pytest.fixture
def crowded(tiny_folder: Path) -> Path:
    """A model folder with everything that such folders have, and with what must not be copied."""
    texts = {
        "preprocessor_config.json": "{}", "processor_config.json": "{}", "video_preprocessor_config.json": "{}",
        "chat_template.jinja": "{{ x }}", "additional_chat_templates/tool_use.jinja": "{{ y }}", "LICENSE": "MIT",
        "NOTICE.txt": "mine", "USE_POLICY.md": "no", "merges.txt": "a b", "1_Pooling/config.json": "{}",
        "run.sh": "rm -rf /", "tool": "#!/bin/sh\n", "helper.py": "import os", ".env": "HF_TOKEN=x",
        "README.md": "card", "relaxprune.json": "{}", "pytorch_model.bin.index.json": "{}",
    }  # fmt: skip
    for name, text in texts.items():
        (tiny_folder / name).parent.mkdir(exist_ok=True)
        (tiny_folder / name).write_text(text)
    for name in ("pytorch_model.bin", "optimizer.pt", "consolidated.safetensors", "rust_model.ot", "lib.so", "x.onnx"):
        (tiny_folder / name).write_bytes(b"\x7fELF\0\0" if name == "lib.so" else b"\x80\x02\0\0")
    (tiny_folder / "tokenizer.model").write_bytes(b"\0\1\2")
    return tiny_folder


def test_everything_but_weights_and_programs_is_copied(crowded, tmp_path):
    (crowded / "big.txt").write_bytes(b"x" * (65 * 2**20))
    found = side_files(crowded)
    assert set(found) == {
        "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja", "LICENSE", "NOTICE.txt", "USE_POLICY.md", "merges.txt",
        "1_Pooling/config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    }  # fmt: skip
    surplus = Surplus(UnusedTensors(), crowded, tuple(found))
    surplus.copy_files(tmp_path / "out")
    assert not surplus.differing_files(tmp_path / "out")
    (tmp_path / "out" / "LICENSE").write_text("other")
    assert surplus.differing_files(tmp_path / "out") == ["LICENSE"]


def test_a_file_that_cannot_be_read_is_bad_input_and_one_that_cannot_be_written_is_not(crowded, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError) as refused:
        Surplus(UnusedTensors(), crowded, ("LICENSE",)).copy_files(tmp_path / "file")
    assert not isinstance(refused.value, RelaxPruneError)
    with pytest.raises(RelaxPruneError, match=r"gone.txt' of the model cannot be read: No such file"):
        Surplus(UnusedTensors(), crowded, ("gone.txt",)).copy_files(tmp_path / "out")


def test_code_is_copied_where_the_configuration_names_it(crowded):
    edit_config(crowded, auto_map={"AutoConfig": "helper.Config"})
    assert "helper.py" in side_files(crowded) and "run.sh" not in side_files(crowded)


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_out_of_the_source_are_not_followed(tiny_folder, tmp_path):
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key.txt").write_text("key")
    (tiny_folder / "key.txt").symlink_to(secret / "key.txt")
    (tiny_folder / "folder").symlink_to(secret)
    (tiny_folder / "loop").symlink_to(tiny_folder)
    (tiny_folder / "nothing.txt").symlink_to(tmp_path / "nothing")
    (tiny_folder / "inside.txt").symlink_to(tiny_folder / "tokenizer.json")
    found = side_files(tiny_folder)
    assert "inside.txt" in found and not {"key.txt", "folder/key.txt", "nothing.txt"} & set(found)
    assert not any(name.startswith("loop") for name in found)


def test_a_saved_tensor_of_the_same_name_is_not_overwritten(tiny_folder, tmp_path):
    loaded = load_model(str(tiny_folder))
    loaded.model.save_pretrained(tmp_path / "out")
    save_file({"model.norm.weight": torch.zeros(16)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has not"):
        UnusedTensors({"model.norm.weight": tmp_path / "other.safetensors"}).append_to(tmp_path / "out")
    assert load_file(tmp_path / "out" / SINGLE_FILE)["model.norm.weight"].any()
