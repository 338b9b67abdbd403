"""Models that accelerate has offloaded are pruned where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from relaxprune import PruneOptions, RelaxPruneError, plan_model, prune_model
from relaxprune.support.tensor_bits import same_bits

FEW = PruneOptions(max_iterations=8)
TOKENS = torch.randint(2, 60, (3, 2, 16), generator=torch.Generator().manual_seed(1))


def llama() -> LlamaForCausalLM:
    """Return a tiny llama."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def in_memory(model: nn.Module, _folder: Path) -> None:
    """Offload all weights to memory."""
    cpu_offload(model, execution_device=torch.device("cpu"))


def on_disk(model: nn.Module, folder: Path) -> None:
    """Offload all weights to files."""
    disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def in_part(model: nn.Module, folder: Path) -> None:
    """Offload two of three blocks to files."""
    places: dict[str, object] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    places |= {"lm_head": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def logits(model: nn.Module) -> Tensor:
    """Return what the model puts out."""
    with torch.no_grad():
        found: Tensor = model(TOKENS[0]).logits
    return found


@pytest.mark.parametrize("offload", [in_memory, on_disk, in_part])
def test_an_offloaded_model_is_pruned_to_the_same_bits(
    tmp_path: Path, offload: Callable[[nn.Module, Path], None]
) -> None:
    whole, away = llama(), llama()
    offload(away, tmp_path / "weights")
    dense = logits(away)
    assert same_bits(dense, logits(whole))
    wanted = prune_model(whole, list(TOKENS), sparsity=0.5, options=FEW)
    plan = plan_model(away, sparsity=0.5, options=FEW)
    assert same_bits(logits(away), dense)
    hooks = [getattr(module, "_hf_hook", None) for module in away.modules()]
    found = prune_model(away, list(TOKENS), plan=plan)
    assert all(torch.equal(mask, found.masks[name]) for name, mask in wanted.masks.items())
    assert [getattr(module, "_hf_hook", None) for module in away.modules()] == hooks
    assert any(parameter.is_meta for parameter in away.parameters()), "it is still offloaded"
    assert same_bits(logits(away), logits(whole)) and not same_bits(logits(away), dense)


def test_offloaded_weights_may_move(tmp_path: Path) -> None:
    whole, away = llama(), llama()
    on_disk(away, tmp_path / "weights")
    for model in (whole, away):
        prune_model(model, list(TOKENS), sparsity=0.5, options=PruneOptions(weights="refit", tune=1, max_iterations=8))
    assert same_bits(logits(away), logits(whole))


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = llama()
    with pytest.raises(RelaxPruneError, match="model must have values for its weights, got meta tensors"):
        plan_model(model, sparsity=0.5)
