"""Checkpoints of other forms travel as they are stored: several dtypes, tied weights, names of a base model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from relaxprune import LoadOptions, PruneOptions, RelaxPruneError, load_model, prune_model
from relaxprune.models.saved_model import save_weights, verify_saved_model
from relaxprune.residency.sources import Shards
from relaxprune.residency.store import store_of
from relaxprune.support.tensor_bits import same_bits

from ..recorders import RunMemory
from ..tiny_llama import save_tiny_llama, tiny_tokenizer
from ..tiny_models import tiny_model

FEW = PruneOptions(max_iterations=6)
TOKENS = torch.randint(2, 60, (3, 2, 16), generator=torch.Generator().manual_seed(1))


def mixed(folder: Path) -> Path:
    """A llama in bfloat16 with norms in float32 and one matrix in float16."""
    save_tiny_llama(folder, dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    other = {name: tensor.float() * 1.001 for name, tensor in tensors.items() if "norm" in name}
    other["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].half()
    save_file(tensors | other, folder / "model.safetensors", {"format": "pt"})
    return folder


def tied(folder: Path) -> Path:
    """A llama whose output head is its embedding."""
    return save_tiny_llama(folder, dtype=torch.bfloat16, tied=True)


def base(folder: Path) -> Path:
    """A GPT-2 without output head, with a tensor that nothing uses."""
    torch.manual_seed(2)
    sizes = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 122}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=1, **sizes))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(plain | {"extra.scale": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def experts(family: str) -> Callable[[Path], Path]:
    """A mixture, whose experts are stored one by one and are one tensor of the model."""

    def make(folder: Path) -> Path:
        tiny_model(family, torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
        tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


def by_letters(folder: Path) -> Path:
    """A Mixtral, whose experts are stored as w1, w2 and w3."""
    torch.manual_seed(2)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_local_experts": 3}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 122}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


FORMS = {
    "mixed": mixed,
    "tied": tied,
    "base": base,
    "qwen3_moe": experts("qwen3_moe"),
    "deepseek_v3": experts("deepseek_v3"),
    "mixtral": by_letters,
}


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
def test_a_checkpoint_of_another_form_comes_out_as_it_is_stored(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path / "source")
    models = [load_model(str(folder), LoadOptions(offload=offload)) for offload in (None, "disk")]
    words = {"sparsity": 0.5, "options": FEW}
    reports = [prune_model(found.model, list(TOKENS), recorder=RunMemory(), **words) for found in models]
    whole, travelling = (found.model for found in models)
    assert all(torch.equal(mask, reports[1].masks[name]) for name, mask in reports[0].masks.items())
    values, state = store_of(travelling).values, travelling.state_dict(keep_vars=True)
    assert all(same_bits(tensor, values(state[name])) for name, tensor in whole.state_dict().items())
    (tmp_path / "out").mkdir()
    save_weights(travelling, tmp_path / "out", models[1].surplus)
    models[1].surplus.copy_files(tmp_path / "out")
    checked = verify_saved_model(tmp_path / "out", travelling, reports[1].masks, models[1].surplus)
    assert checked.pruned_layers == len(reports[0].masks) and checked.tensors == len(state)
    source, out = (Shards(sorted(path.glob("model*.safetensors"))) for path in (folder, tmp_path / "out"))
    assert {name: entry.dtype for name, entry in source.entries.items()} == {
        name: entry.dtype for name, entry in out.entries.items()
    }
    whole.save_pretrained(tmp_path / "whole")
    plain = Shards(sorted((tmp_path / "whole").glob("model*.safetensors")))
    assert all(same_bits(plain.read(name), out.read(name)) for name in plain if name in out.entries)


def test_a_flipped_bit_on_disk_is_found(tmp_path: Path) -> None:
    folder = tied(tmp_path / "source")
    loaded = load_model(str(folder), LoadOptions(offload="disk"))
    report = prune_model(loaded.model, list(TOKENS), recorder=RunMemory(), sparsity=0.5, options=FEW)
    (tmp_path / "out").mkdir()
    save_weights(loaded.model, tmp_path / "out", loaded.surplus)
    file = tmp_path / "out" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RelaxPruneError, match="is not what was written"):
        verify_saved_model(tmp_path / "out", loaded.model, report.masks, loaded.surplus)
