"""Rotated models compute what they did, in every architecture where anything turns; what does not turn says why."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DiffLlamaConfig, Llama4TextConfig, LlamaConfig

from relaxprune import RelaxPruneError, RotateOptions, Rotation, load_rotated, rotate_model
from relaxprune.models.forward import borrowed
from relaxprune.models.layers import find_layers
from relaxprune.options import Target
from relaxprune.rotation.learners.base import Learned, Learner, Lesson
from relaxprune.rotation.learners.registry import make_learner
from relaxprune.rotation.norms import random_rotation

from ..tiny_models import tiny_model

GAIN = "changed channel by channel before it is added to the residual stream"
SHIFTS = "does not commute with rotations, as it shifts channels"
# Family -> how many value heads turn in its three blocks, and why its residual stream stays ("" if it turns).
FAMILIES = {
    "qwen2": (6, ""),
    "phi3": (6, ""),
    "qwen3_moe": (6, ""),
    "gpt2": (12, SHIFTS),
}
MORE = {
    "gemma3": (6, GAIN),
    "gemma": (6, ""),
    "llama": (6, ""),
    "qwen3": (6, ""),
    "mistral": (6, ""),
    "mixtral": (6, ""),
    "gpt_oss": (6, ""),
    "granite": (6, ""),
    "deepseek_v3": (12, ""),
    "gemma2": (6, GAIN),
    "olmo2": (6, GAIN),
    "opt": (12, SHIFTS),
    "gpt_neox": (12, SHIFTS),
    "bert": (12, "does not read what the last norm puts out"),
}
TOKENS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(4))


@dataclass(frozen=True, kw_only=True)
class Fixed(Learner):
    """Always the same random rotation."""

    name: ClassVar[str] = "fixed"

    def learn(self, lesson: Lesson) -> Learned:
        """Return it."""
        return Learned(random_rotation(lesson.width), 1.0)


def uneven(family: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a tiny model whose gains and biases are far from 1 and 0."""
    model = tiny_model(family, torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model.to(dtype)


def logits(model: nn.Module) -> Tensor:
    with borrowed(model):
        return model(input_ids=TOKENS).logits.double()


def rotated(model: nn.Module, **options: object) -> Rotation:
    return rotate_model(model, [TOKENS], options=RotateOptions(**{"learner": Fixed(), **options}))


@pytest.mark.parametrize("family", [*FAMILIES, *(pytest.param(family, marks=pytest.mark.long) for family in MORE)])
def test_the_model_computes_the_same(family: str) -> None:
    heads, reason = {**FAMILIES, **MORE}[family]
    model = uneven(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    dense = logits(model)
    rotation = rotated(model)
    # Norms and routers of transformers compute in float32.
    assert (logits(model) - dense).norm() < 1e-6 * dense.norm()
    assert rotation.difference < 1e-6
    assert sum(item.heads for item in rotation.heads) == heads
    assert rotation.stream is (reason == "") and reason in rotation.reason
    changed = [name for name, old in before.items() if not torch.equal(old, dict(model.named_parameters())[name])]
    assert any("embed" in name for name in changed) is rotation.stream
    assert len(changed) > len(before) / 2 if rotation.stream else changed


def test_a_tied_head_becomes_a_weight_of_its_own_and_transformers_loads_the_model(tmp_path: Path) -> None:
    model = uneven("gemma", torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    dense = logits(model)
    rotation = rotated(model)
    assert rotation.extra_bytes == 64 * 32 * 4 and not model.config.tie_word_embeddings
    assert all(not norm.weight.any() for norm in (model.model.norm, model.model.layers[1].input_layernorm))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(model))
    assert (logits(loaded) - dense).norm() < 1e-5 * dense.norm()


def test_values_are_worked_out_in_float64_and_rounded_once() -> None:
    model = uneven("llama", torch.bfloat16)
    block = model.model.layers[1]
    weight, gain = block.mlp.up_proj.weight.double(), block.post_attention_layernorm.weight.double()
    written = block.mlp.down_proj.weight.double()
    assert rotated(model).difference < 0.09
    turn = random_rotation(32)
    assert torch.equal(block.mlp.up_proj.weight, (weight * gain @ turn).bfloat16())
    assert torch.equal(block.mlp.down_proj.weight, (turn.T @ written).bfloat16())
    assert bool((block.post_attention_layernorm.weight == 1).all())


def test_heads_alone_leave_the_stream_as_it_is() -> None:
    model = uneven("llama")
    embedding, dense = model.model.embed_tokens.weight.clone(), logits(model)
    rotation = rotated(model, rotate="heads")
    assert not rotation.stream and rotation.extra_bytes == 0
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert (logits(model) - dense).norm() < 1e-12 * dense.norm()


def test_a_scale_for_each_channel_is_found_out_however_it_is_hidden() -> None:
    """Between a layer and the sum, between a norm and what reads it, and between values and their reader."""
    scale = torch.linspace(0.9, 1.1, 32, dtype=torch.float64)
    written, read, mixed = (uneven("llama") for _ in range(3))
    written.model.layers[2].mlp.register_forward_hook(lambda _module, _args, output: output * scale)
    assert GAIN in rotated(written).reason
    read.model.layers[2].self_attn.q_proj.register_forward_pre_hook(lambda _module, args: (args[0] * scale,))
    assert "block 'model.layers.2' does not compute the same" in rotated(read).reason
    mixed.model.layers[1].self_attn.o_proj.register_forward_pre_hook(lambda _module, args: (args[0].relu(),))
    found = rotated(mixed)
    assert found.heads[1].heads == 0 and "mixed over tokens only" in found.heads[1].reason
    assert found.stream and found.heads[0].heads == 2


def test_blocks_with_bases_of_their_own(tmp_path: Path) -> None:
    """The basis changes between blocks, and transformers loads that once it is told what it means."""
    model = uneven("qwen2", torch.float32)
    dense = logits(model)
    rotation = rotated(model, rotate="blocks", learner=make_learner("error", steps=2))
    assert (logits(model) - dense).norm() < 1e-5 * dense.norm()
    assert rotation.stream and rotation.change_bytes == 2 * 32 * 32 * 4 and 0 < rotation.change_share < 0.2
    assert model.config.rotated_blocks == {"names": ["model.layers.1", "model.layers.2"], "width": 32}
    change = model.model.layers[1].basis.weight.double()
    assert (change.T @ change - torch.eye(32)).abs().max() < 1e-6 and not torch.equal(change, torch.eye(32).double())
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "relaxprune_rotated_qwen2" and "auto_map" not in config
    loaded = load_rotated(tmp_path)
    assert type(loaded) is type(model) and torch.equal(logits(loaded), logits(model))
    skipped = {layer.name: layer.reason for layer in find_layers(loaded)[1]}
    assert "BasisChange" in skipped["model.layers.1.basis"]


def test_a_config_that_does_not_say_where_bases_change_is_refused(tmp_path: Path) -> None:
    for stated in ({}, {"rotated_blocks": "all"}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "relaxprune_rotated_llama", **stated}))
        with pytest.raises(RelaxPruneError, match="must state the names and the width of rotated_blocks"):
            load_rotated(tmp_path)


def test_blocks_may_share_a_basis() -> None:
    model = uneven("llama")
    dense = logits(model)
    rotation = rotated(model, rotate="blocks", every=2, learner=make_learner("error", steps=2))
    assert (logits(model) - dense).norm() < 1e-6 * dense.norm()
    assert model.config.rotated_blocks["names"] == ["model.layers.2"] and rotation.change_bytes == 32 * 32 * 8


def test_blocks_that_make_some_parameters_beside_the_skeleton_are_loaded(tmp_path: Path) -> None:
    """Of DiffLlama: they are real numbers while the model is made without any."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AutoModelForCausalLM.from_config(DiffLlamaConfig(**shape, vocab_size=64)).eval()
    rotated(model, rotate="blocks", learner=make_learner("error", steps=1))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_rotated(tmp_path)), logits(model))


def test_routers_that_put_out_several_things_do_not_stop_it() -> None:
    """Of Llama 4: a linear layer of its own class that puts out scores and logits."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"num_key_value_heads": 1, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 16}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = Llama4TextConfig(**shape, **more, **ends, vocab_size=64, interleave_moe_layer_step=1)
    model = AutoModelForCausalLM.from_config(config).eval()
    dense = logits(model)
    assert rotated(model).heads[0].heads == 1
    assert (logits(model) - dense).norm() < 1e-5 * dense.norm()


@pytest.mark.parametrize(
    ("learned", "fault"),
    [
        (2 * torch.eye(8, dtype=torch.float64), "differs from the identity by 3.0e"),
        (torch.full((8, 8), torch.nan, dtype=torch.float64), "differs from the identity by nan"),
        (torch.eye(4, dtype=torch.float64), r"shape \(4, 4\) of torch.float64"),
        (torch.eye(8), r"shape \(8, 8\) of torch.float32"),
    ],
)
def test_learners_that_return_no_rotation_are_refused_before_anything_changes(learned: Tensor, fault: str) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Learner):
        name: ClassVar[str] = "wrong"

        def learn(self, lesson: Lesson) -> Learned:
            return Learned(learned, 1.0)

    model = uneven("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RelaxPruneError, match=rf"'wrong' must return an orthogonal \(8, 8\) .* block 0, got .*{fault}"):
        rotated(model, rotate="heads", learner=Wrong())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "heads", "reason"),
    [
        ({"hidden_size": 24, "head_dim": 6}, 0, "masks of 2:4 do not fit a head alone"),  # groups lie across heads
        ({"hidden_size": 32, "head_dim": 8, "intermediate_size": 30}, 2, ""),  # --skip-misfits leaves down_proj alone
    ],
)
def test_matrices_that_the_target_does_not_fit_teach_nothing(shape: dict[str, int], heads: int, reason: str) -> None:
    torch.manual_seed(0)
    more = {"intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**more, **shape}, vocab_size=64)).eval()
    dense = logits(model)
    target = Target(pattern="2:4")
    found = rotated(model, target=target, learner=make_learner("error", steps=2))
    assert found.stream and (found.heads[0].heads, found.heads[0].reason) == (heads, reason)
    assert (logits(model) - dense).norm() < 1e-5 * dense.norm()


def test_a_target_that_fits_no_layer_is_refused_before_anything_changes() -> None:
    model = uneven("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RelaxPruneError, match=r"got 3:7, which fits none of 'model.layers.0'"):
        rotated(model, target=Target(pattern="3:7"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.long
def test_transformers_alone_refuses_bases_of_blocks(tmp_path: Path) -> None:
    model = uneven("llama", torch.float32)
    rotated(model, rotate="blocks", learner=make_learner("error", steps=2))
    model.save_pretrained(tmp_path)
    code = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "relaxprune_rotated_llama" in done.stderr


def test_the_same_rotation_is_learned_again() -> None:
    states = []
    for _ in range(2):
        model = uneven("llama", torch.float32)
        rotated(model, learner=make_learner("error", steps=2))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_refusals() -> None:
    with pytest.raises(RelaxPruneError, match=r"^rotate must be one of free, heads, blocks, got 'all'"):
        RotateOptions(rotate="all")
    with pytest.raises(RelaxPruneError, match=r"learner must be one of .*, got 'errors'; did you mean"):
        RotateOptions(learner="errors")
    with pytest.raises(RelaxPruneError, match=r'every is 2, which is for rotate="blocks"'):
        RotateOptions(every=2)
    own = uneven("llama")
    own.__class__ = type("Own", (type(own),), {})
    with pytest.raises(RelaxPruneError, match=r"must be the one that AutoModelForCausalLM makes, got a Own"):
        rotated(own, rotate="blocks")
    shared = uneven("llama")
    shared.model.layers[2].mlp.up_proj.weight = shared.model.layers[0].mlp.up_proj.weight
    with pytest.raises(RelaxPruneError, match=r"weights of their own to be rotated, got 'model.layers.0.mlp.up_proj"):
        rotated(shared)
    with pytest.raises(RelaxPruneError, match="must hold token ids"):
        rotate_model(uneven("llama"), [torch.zeros(2, 3, 32)])
    with pytest.raises(RelaxPruneError, match="must have a list of blocks"):
        rotate_model(nn.Sequential(nn.Linear(4, 4)), [TOKENS])
