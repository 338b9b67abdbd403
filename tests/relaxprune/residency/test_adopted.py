"""Models that accelerate has offloaded are pruned where they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from relaxprune import PruneOptions, RelaxPruneError, plan_model, prune_model
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.residency.block_store import BlockStore
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


def test_a_model_is_left_as_accelerate_has_it(tmp_path: Path) -> None:
    model = llama()
    in_memory(model, tmp_path)
    prune_model(model, list(TOKENS), sparsity=0.5, options=FEW)
    wanted = logits(model)
    assert same_bits(logits(copy.deepcopy(model)), wanted)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    remove_hook_from_submodules(model)
    torch.save(model, tmp_path / "model.pt")


def test_a_start_that_fails_leaves_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    in_memory(model, tmp_path)
    wanted = logits(model)
    with monkeypatch.context() as patch:
        patch.setattr(BlockStore, "_read", lambda *_arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune_model(model, list(TOKENS), sparsity=0.5, options=FEW)
    assert same_bits(logits(model), wanted)


class Kept:
    """A recorder that gives nothing back."""

    def load(self, block_index: int) -> None:
        """Know nothing."""

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Take a record."""


def test_a_recorder_need_not_give_anything_back(tmp_path: Path) -> None:
    whole, away = llama(), llama()
    on_disk(away, tmp_path)
    wanted, found = (prune_model(model, list(TOKENS), sparsity=0.5, recorder=Kept()) for model in (whole, away))
    assert all(torch.equal(mask, found.masks[name]) for name, mask in wanted.masks.items())


class Handing(nn.Module):
    """A block that hands a mask on, which its model changes between blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Add something to the states."""
        return states + torch.tanh(self.inner(states)) * mask, mask


class Odd(nn.Module):
    """A model that looks at what its blocks put out: at the mask that they hand on, or at the size of the states."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.limit, self.first = limit, nn.Linear(8, 8, bias=False)
        self.layers = nn.ModuleList(Handing() for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the blocks, until the states are large."""
        states = self.first(inputs)
        mask = (inputs.abs().mean(-1, keepdim=True) > 0.7).to(states.dtype) + 0.1
        for block in self.layers:
            states, mask = block(states, mask)
            mask = mask * 0.9 + 0.05
            if self.limit < float("inf") and float(states.abs().mean()) > self.limit:
                break
        return states


@pytest.mark.parametrize("limit", [float("inf"), 1.5], ids=["a mask", "an early end"])
def test_a_model_that_looks_at_what_its_blocks_put_out(limit: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [size * torch.randn(4, 6, 8, generator=generator) for size in (0.5, 0.5, 0.5, 9.0, 9.0)]
    whole, away = Odd(limit), Odd(limit)
    in_memory(away, tmp_path)
    wanted, found = (prune_model(model, inputs, sparsity=0.5, options=FEW) for model in (whole, away))
    assert wanted.propagation == found.propagation
    assert wanted.masks.keys() == found.masks.keys()
    assert all(torch.equal(mask, found.masks[name]) for name, mask in wanted.masks.items())


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = llama()
    with pytest.raises(RelaxPruneError, match="model must have values for its weights, got meta tensors"):
        plan_model(model, sparsity=0.5)
