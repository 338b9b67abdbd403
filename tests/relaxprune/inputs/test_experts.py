"""Fused experts: what each of them reads, what is written, and those that no token reaches."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from relaxprune import MaskProblem, solve
from relaxprune.cli import main
from relaxprune.inputs.experts import ExpertListener
from relaxprune.models.layers import find_layers
from relaxprune.options.prune_options import PruneOptions
from relaxprune.problems import KSparse
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.prune_report import UNREACHED
from relaxprune.runs.mask_file import read_masks

from ..tiny_llama import WORDS, tiny_tokenizer, write_text
from ..tiny_models import ENDS, GROUPED, config_of, padded_batches, tiny_model


def oss_model() -> nn.Module:
    """A model whose experts are stored as (in, out) and have biases."""
    torch.manual_seed(0)
    config = transformers.GptOssConfig(
        **{**GROUPED, "intermediate_size": 24}, **ENDS, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=8, layer_types=["full_attention"] * 3,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def read_by_experts(model: nn.Module, block: int, batches) -> dict[int, torch.Tensor]:
    """Return expert -> (tokens, features) that are routed to it, padding left out, by the router's own answer."""
    calls = []
    experts = model.model.layers[block].mlp.experts
    handle = experts.register_forward_pre_hook(
        lambda _m, args, kwargs: calls.append([*args, *kwargs.values()][:2]), with_kwargs=True
    )
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    found = {}
    for expert in range(4):
        parts = []
        for (hidden, chosen), batch in zip(calls, batches, strict=True):
            routed = (chosen == expert).any(dim=-1).reshape(-1) & batch["attention_mask"].bool().reshape(-1)
            parts.append(hidden.reshape(-1, hidden.shape[-1])[routed])
        found[expert] = torch.cat(parts).double()
    return found


@pytest.mark.parametrize("make", [lambda: tiny_model("qwen3_moe"), oss_model], ids=["qwen3_moe", "gpt_oss"])
def test_every_expert_has_the_gram_of_the_tokens_that_it_reads(make):
    dense, batches = make(), padded_batches(4)
    model = copy.deepcopy(dense)
    way = model.config._experts_implementation
    report = prune_model(model, batches, sparsity=0.5, solver="wanda")
    assert model.config._experts_implementation == way and report.propagation == "replay"
    layers = {layer.name: layer for layer in find_layers(dense)[0]}
    routed = read_by_experts(dense, 0, batches)
    after = {layer.parameter: layer.matrix() for layer in find_layers(model)[0]}
    seen = 0
    for item in report.layers:
        if item.kind != "Expert":
            continue
        mask, expert = report.masks[item.parameter], layers[item.name].expert
        assert item.parameter == f"{item.name.rpartition('.')[0]}[{expert}]"
        assert mask.shape == (item.rows, item.cols) and bool((mask.sum(dim=1) * 2 == item.cols).all())
        assert torch.equal(after[item.parameter], layers[item.name].matrix().masked_fill(~mask, 0.0))
        if item.block == 0 and "gate_up_proj" in item.name:
            inputs, weight = routed[expert], layers[item.name].matrix().double()
            assert item.inputs.tokens == len(inputs)
            assert item.loss.dense_energy == pytest.approx(
                float((inputs @ weight.T).square().sum() / len(inputs)), rel=1e-4
            )
            problem = MaskProblem(weight, inputs.T @ inputs / len(inputs), KSparse(weight.shape[1] // 2))
            assert torch.equal(solve(problem, "wanda").mask, mask)
            seen += 1
    tokens = [item.inputs.tokens for item in report.layers if item.block == 1 and "experts.down_proj" in item.name]
    padded = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert seen == 4 and sum(tokens) == 2 * padded  # two experts a token


def test_an_expert_that_no_token_reaches_is_left_alone_and_listed():
    dense = tiny_model("qwen3_moe")
    token = torch.tensor([[7]])
    batches = [{"input_ids": token, "attention_mask": torch.ones_like(token)}]  # one token reaches two experts
    reached = {expert for expert, tokens in read_by_experts(dense, 1, batches).items() if len(tokens)}
    model = copy.deepcopy(dense)
    report = prune_model(model, batches, sparsity=0.5, solver="wanda", options=PruneOptions(include=("*layers.1.*",)))
    pruned = {item.name for item in report.layers}
    left = {item.name for item in report.skipped if item.reason == UNREACHED}
    for expert in range(4):
        for matrix in ("gate_up_proj", "down_proj"):
            name = f"model.layers.1.mlp.experts.{matrix}.{expert}"
            assert (name in pruned) is (expert in reached) and (name in left) is (expert not in reached)
    before, after = dense.model.layers[1].mlp.experts, model.model.layers[1].mlp.experts
    for expert in set(range(4)) - reached:
        assert torch.equal(before.gate_up_proj[expert], after.gate_up_proj[expert])
    assert len(reached) == 2


def test_products_that_name_their_matrix_are_heard():
    """Whatever a model calls with names is nothing to stumble over, and an expert's product is heard that way too."""
    layers = [layer for layer in find_layers(tiny_model("qwen3_moe"))[0] if layer.expert is not None][:1]
    heard, inputs = [], torch.randn(5, layers[0].shape[1])
    with torch.no_grad(), ExpertListener(layers, lambda layer, seen, rows: heard.append((layer, seen))):
        functional.linear(inputs, weight=torch.randn(3, inputs.shape[1]))
        torch.matmul(input=inputs, other=inputs.T)
        inputs.matmul(other=inputs.T)
        functional.linear(input=inputs, weight=layers[0].stored)
    assert [(layer.name, seen is inputs) for layer, seen in heard] == [(layers[0].name, True)]


@pytest.mark.parametrize("options", [PruneOptions(weights="refit", correct=0.5, tune=1), PruneOptions(weights="refit")])
def test_experts_refitted_correct_nothing(options):
    report = prune_model(tiny_model("qwen3_moe"), padded_batches(4), pattern="2:4", options=options)
    corrected = {(item.kind, item.loss.corrected) for item in report.layers}
    assert corrected == {("Expert", 0.0), ("Linear", options.correct)}
    assert all(item.objective <= item.loss.kept_objective * (1 + 1e-6) for item in report.layers)


def test_from_the_command_line_to_disk_and_back(tmp_path):
    config = config_of("qwen3_moe")
    config.vocab_size = len(WORDS) + 2
    torch.manual_seed(0)
    dense = transformers.AutoModelForCausalLM.from_config(config)
    dense.save_pretrained(tmp_path / "moe")
    tiny_tokenizer().save_pretrained(tmp_path / "moe")
    text = write_text(tmp_path / "text.txt")
    words = ["prune", str(tmp_path / "moe"), "--sparsity", "0.5", "--solver", "wanda", "--calibration", str(text)]
    out = tmp_path / "out"
    assert main([*words, "--windows", "8", "--length", "16", "--out", str(out)]) in (0, 3)  # 3: an expert not reached
    masks = read_masks(out / "masks.safetensors")
    saved = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    experts = [name for name in masks if "experts" in name]
    assert experts
    for name in experts:
        parameter, _, index = name.removesuffix("]").partition("[")
        matrix, mask = saved[parameter][int(index)], masks[name]
        assert torch.equal(matrix, dense.state_dict()[parameter][int(index)].masked_fill(~mask, 0.0))
