"""What a run would do, said without running anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.solve_options import SolveOptions
from relaxprune.options.target import Target
from relaxprune.problems import NM, KSparse, RelaxPruneError
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.planner import plan_model
from relaxprune.residency import Residency

from ..tiny_models import padded_batches, tiny_model


def names(plan):
    return [layer.name for layer in plan.layers]


def test_a_llama_without_running_it(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model), "forward", None)
    plan = plan_model(model, sparsity=0.5)
    assert len(plan.layers) == 21
    assert {(layer.kind, layer.block) for layer in plan.layers} == {("Linear", 0), ("Linear", 1), ("Linear", 2)}
    down = next(layer for layer in plan.layers if layer.name.endswith("down_proj"))
    assert (down.rows, down.cols, down.keep) == (32, 48, 32 * 24)
    reasons = {item.name: item.reason for item in plan.skipped}
    assert set(reasons) == {"model.embed_tokens", "lm_head"}
    assert "output head" in reasons["lm_head"] and "embedding" in reasons["model.embed_tokens"]


def test_str_shows_every_layer_and_every_skipped_one():
    plan = plan_model(tiny_model("qwen3_moe"), pattern="2:4")
    text = str(plan)
    for name in (*names(plan), *(item.name for item in plan.skipped)):
        assert name in text
    assert "36 layers" in text and "GiB of memory" in text and "TopKRouter" in text
    assert "at most" not in text, "the estimate is no bound"


def test_conv1d_is_planned_as_rows_of_outputs():
    layer = plan_model(tiny_model("gpt2"), sparsity=0.25).layers[0]
    assert (layer.name, layer.kind, layer.rows, layer.cols) == ("transformer.h.0.attn.c_attn", "Conv1D", 96, 32)
    assert layer.keep == 96 * 24


def test_patterns_choose_layers():
    model = tiny_model("llama")
    some = plan_model(model, sparsity=0.5, options=PruneOptions(include=("*.mlp.*",), exclude=("*.1.*", "*.up_proj")))
    assert names(some) == [f"model.layers.{block}.mlp.{kind}_proj" for block in (0, 2) for kind in ("gate", "down")]
    reasons = {item.reason for item in some.skipped}
    assert {"excluded by a pattern", "matched by no include pattern"} <= reasons
    assert "lm_head" in names(plan_model(model, sparsity=0.5, options=PruneOptions(include=("lm_head",))))


def test_a_tied_head_is_not_pruned_even_when_named():
    model = tiny_model("gemma3")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with pytest.raises(RelaxPruneError, match="include pattern 'lm_head' matches none"):
        plan_model(model, sparsity=0.5, options=PruneOptions(include=("lm_head",)))


def test_only_the_language_model_of_gemma3():
    plan = plan_model(tiny_model("gemma3_vision"), sparsity=0.5)
    assert all(name.startswith("model.language_model.layers.") for name in names(plan))
    assert any(item.name.startswith("model.vision_tower") and "outside" in item.reason for item in plan.skipped)


def test_other_modules_are_pruned_whole():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    plan = plan_model(model, sparsity=0.5)
    assert [(layer.name, layer.kind, layer.block) for layer in plan.layers] == [
        ("0", "Conv2d", None),
        ("2", "Linear", None),
    ]


def test_the_estimate_counts_what_it_says():
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    options = PruneOptions(memory_budget_bytes=2000)
    plan = plan_model(model, sparsity=0.5, options=options, tokens=10)
    assert plan.estimated_bytes == 4 * 32 + 32 + 8 * 64 + 20 * 64 + 12 * 32 + min(2000, 8 * 26 * 32) + 2 * 10 * 8 * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of sparsity, pattern and polytope, got none"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "exactly one.*sparsity=0.5, pattern='2:4'"),
        ({"sparsity": 1.5}, r"sparsity must lie in \[0, 1\], got 1.5"),
        ({"sparsity": float("nan")}, "sparsity"),
        ({"sparsity": "0.5"}, "sparsity must lie in"),
        ({"polytope": "2:4"}, "polytope must be a Polytope"),
        ({"sparsity": 0.5, "seed": 3}, r"give options=PruneOptions\(seed=…\)"),
        ({"sparsity": 0.5, "exclude": ("*.mlp.*",)}, r"give options=PruneOptions\(exclude=…\)"),
        ({"sparsity": 0.5, "options": SolveOptions()}, "options must be PruneOptions, got SolveOptions"),
        ({"pattern": "2;4"}, "2;4"),
        ({"sparsity": 0.5, "tokens": -3}, "tokens must be a whole number of at least 0, got -3"),
        ({"pattern": "3:5"}, r"layer 'model.layers.0.self_attn.q_proj' of shape \(32, 32\)"),
        ({"polytope": KSparse(40)}, r"layer 'model.layers.0.self_attn.q_proj'.*40"),
    ],
)
def test_targets_that_do_not_fit(arguments, words):
    with pytest.raises(RelaxPruneError, match=words):
        plan_model(tiny_model("llama"), **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"include": "*.mlp.*"}, "include must be a tuple"),
        ({"exclude": (3,)}, "exclude must be a tuple"),
        ({"statistics": "groups"}, "statistics must be StatisticsOptions"),
        ({"permute": "no"}, "permute must be True or False"),
        ({"start": "best"}, "start"),
        ({"polish": "shine"}, "polish"),
        ({"max_iterations": 0}, "max_iterations"),
        ({"max_iterations": 2.5}, "max_iterations"),
        ({"time_limit_s": -1.0}, "time_limit_s"),
        ({"time_limit_s": float("inf")}, "time_limit_s"),
        ({"gap_tolerance": float("nan")}, "gap_tolerance"),
        ({"seed": -1}, "seed"),
        ({"seed": 2.5}, "seed"),
        ({"seed": float("inf")}, "seed"),
    ],
)
def test_options_are_checked_at_once(arguments, words):
    with pytest.raises(RelaxPruneError, match=words):
        PruneOptions(**arguments)


def test_weights_that_are_not_finite_name_the_layer():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(RelaxPruneError, match=r"layer 'model.layers.1.mlp.up_proj' must be finite"):
        plan_model(model, sparsity=0.5)


def test_nothing_to_prune():
    with pytest.raises(RelaxPruneError, match="must have a layer to prune"):
        plan_model(tiny_model("llama"), sparsity=0.5, options=PruneOptions(exclude=("*",)))


def test_targets_as_plain_values():
    assert Target(sparsity=0.5).to_dict() == {"sparsity": 0.5}
    assert Target(pattern="2:4").to_dict() == {"pattern": "2:4"}
    assert Target(polytope=NM(1, 4)).to_dict() == {"polytope": NM(1, 4).to_dict()}
    assert Target(pattern="1:4").fraction((4, 8)) == 0.75
    assert Target(sparsity=0.3).fraction((4, 8)) == 0.3


def test_a_plan_carried_out_is_the_run_of_its_words():
    batches, words = padded_batches(1), {"pattern": "2:4", "solver": "fw", "effort": "fast"}
    model, other = tiny_model("llama"), tiny_model("llama")
    plan = plan_model(model, **words)
    assert (plan.request.target.pattern, plan.request.solver.name) == ("2:4", "fw")
    one, two = prune_model(model, batches, plan=plan), prune_model(other, batches, **words)
    assert all(torch.equal(one.masks[name], mask) for name, mask in two.masks.items())
    assert one.options == two.options


def test_a_plan_is_for_its_model_as_it_was():
    model = tiny_model("llama")
    plan = plan_model(model, sparsity=0.5)
    with pytest.raises(RelaxPruneError, match="plan must be one that plan_model has made for this model"):
        prune_model(tiny_model("llama"), padded_batches(1), plan=plan)
    with pytest.raises(RelaxPruneError, match="plan already holds all options of the run, got also solver, sparsity"):
        prune_model(model, padded_batches(1), plan=plan, sparsity=0.5, solver="wanda")
    gate = model.model.layers[1].mlp.gate_proj
    gate.weight = nn.Parameter(gate.weight.detach().clone())
    with pytest.raises(RelaxPruneError, match=r"earlier weight of layer 'model.layers.1.mlp.gate_proj': plan again"):
        prune_model(model, padded_batches(1), plan=plan)


def test_where_weights_live_is_not_up_to_the_plan():
    tiny = tiny_model("llama")
    plan = plan_model(tiny, sparsity=0.5, residency=Residency(states="disk"))
    assert plan.residency == Residency("device", "disk")
    with pytest.raises(RelaxPruneError, match=r"residency must say weights='device' .* got 'disk': load it with"):
        plan_model(tiny, sparsity=0.5, residency=Residency("disk"))
