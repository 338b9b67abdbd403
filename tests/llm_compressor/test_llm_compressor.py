"""The modifier inside llm-compressor's own ``oneshot``; runs in the environment of ``make test-llm-compressor``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if find_spec("llmcompressor") is None:
    pytest.skip("llm-compressor has an environment of its own: make test-llm-compressor", allow_module_level=True)

from datasets import Dataset
from llmcompressor import oneshot
from transformers import AutoModelForCausalLM, LlamaConfig

from relaxprune import MaskProblem, solve
from relaxprune.adapters.llm_compressor import RelaxPruneModifier
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.problems import NM, KSparse
from tests.relaxprune.tiny_llama import tiny_tokenizer

SAMPLES, LENGTH = 12, 16
pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # of the host and of what it imports


def model_and_data(folder: Path) -> tuple[torch.nn.Module, Dataset]:
    """Return a tiny model, loaded from a folder as the host wants it, and token windows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 60, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(1))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    return model, data


def run(model, data, recipe) -> None:
    oneshot(
        model=model, dataset=data, recipe=recipe, num_calibration_samples=SAMPLES, max_seq_length=LENGTH,
        shuffle_calibration_samples=False, pipeline="sequential",
    )  # fmt: skip


def first_layer_gram(model: torch.nn.Module, data: Dataset) -> torch.Tensor:
    """Return the Gram of what the first attention reads, which no pruning comes before."""
    gram = GramAccumulator(32)
    layer = model.model.layers[0].self_attn.q_proj
    handle = layer.register_forward_pre_hook(lambda _module, args: gram.add(args[0]))
    with torch.no_grad():
        for row in data["input_ids"]:
            model(input_ids=torch.tensor([row]))
    handle.remove()
    return gram.gram()


@pytest.mark.parametrize(
    ("amount", "polytope"), [({"sparsity": 0.5}, KSparse(16)), ({"sparsity": 0.5, "mask_structure": "2:4"}, NM(2, 4))]
)
def test_oneshot_saved_and_reloaded_is_what_solve_gives(tmp_path: Path, amount, polytope) -> None:
    model, data = model_and_data(tmp_path / "tiny")
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    head = model.lm_head.weight.detach().clone()
    gram = first_layer_gram(model, data)
    modifier = RelaxPruneModifier(**amount)
    run(model, data, [modifier])
    model.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = solve(MaskProblem(weight, gram, polytope))
    found = loaded.model.layers[0].self_attn.q_proj.weight.detach()
    assert torch.equal(found, weight.masked_fill(~expected.mask, 0.0)) and not bool(
        torch.signbit(found[found == 0]).any()
    )
    figures = modifier.figures["model.layers.0.self_attn.q_proj"]
    assert figures.objective == pytest.approx(expected.objective, rel=1e-5)
    assert figures.lower_bound <= figures.objective and figures.tokens == SAMPLES * LENGTH
    for name, parameter in loaded.named_parameters():
        if name.endswith("proj.weight"):
            assert bool(((parameter != 0).sum(dim=1) == parameter.shape[1] // 2).all()), name
    assert torch.equal(loaded.lm_head.weight, head)


@pytest.mark.parametrize("ignore", [None, ["lm_head"], ["re:.*lm_head"], ["model.layers.1.mlp.down_proj"]])
def test_the_head_and_names_to_ignore_are_really_ignored(tmp_path: Path, ignore) -> None:
    model, data = model_and_data(tmp_path / "tiny")
    head = model.lm_head.weight.detach().clone()
    run(
        model,
        data,
        [RelaxPruneModifier(sparsity=0.5, solver="wanda", **({} if ignore is None else {"ignore": ignore}))],
    )
    assert torch.equal(model.lm_head.weight, head)
    down = model.model.layers[1].mlp.down_proj.weight
    assert bool((down == 0).any()) is (ignore is None or "lm_head" in ignore[0])


def test_a_recipe_in_yaml(tmp_path: Path) -> None:
    model, data = model_and_data(tmp_path / "tiny")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "pruning_stage:\n  pruning_modifiers:\n    RelaxPruneModifier:\n      sparsity: 0.75\n      solver: fw\n"
        "      solver_options: {max_iterations: 30}\n"
    )
    run(model, data, str(recipe))
    weight = model.model.layers[1].mlp.up_proj.weight
    assert bool(((weight != 0).sum(dim=1) == 8).all())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"sparsity": 0.5, "solver": "fww"}, "did you mean 'fw'"),
        ({"sparsity": 0.5, "solver_options": {"bogus": 2}}, "no option 'bogus'"),
        ({"sparsity": 0.5, "solver_options": {"max_iterations": 0}}, "max_iterations must be a whole number"),
        ({"sparsity": [0.5, 1.5]}, r"must lie in \[0, 1\], got 1.5"),
        ({"sparsity": None}, "exactly one of sparsity"),
        ({"sparsity": 0.5, "mask_structure": "2:4", "solver": "fww"}, "did you mean 'fw'"),
    ],
)
def test_a_modifier_with_bad_options_is_not_made(arguments, expected) -> None:
    with pytest.raises(ValueError, match=expected):
        RelaxPruneModifier(**arguments)


def test_a_pattern_needs_no_sparsity() -> None:
    assert RelaxPruneModifier(sparsity=None, mask_structure="2:4").mask_structure == "2:4"
