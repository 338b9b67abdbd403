"""How much of a model was pruned, which sides of it, and layers that do not fit."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from relaxprune import RelaxPruneError, plan_model, prune_model
from relaxprune.cli.notices import report_notices
from relaxprune.options import PruneOptions

from ..tiny_models import tiny_model

BATCHES = [torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(1)) for _ in range(3)]
SIDES = {"encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


def two_sided(family: str) -> nn.Module:
    torch.manual_seed(0)
    if family == "bart":
        config = transformers.BartConfig(d_model=32, **SIDES, **HEADS, vocab_size=92, max_position_embeddings=64)
        return transformers.BartForConditionalGeneration(config).eval()
    if family == "t5":
        config = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=92
        )
        return transformers.T5ForConditionalGeneration(config).eval()
    wide = {"intermediate_size": 48, "num_attention_heads": 4}
    text = {**wide, "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 92, "max_position_embeddings": 32}
    vision = {**wide, "hidden_size": 48, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
    ends = {"eos_token_id": 91, "bos_token_id": 90, "pad_token_id": 1}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text | ends, vision_config=vision, projection_dim=16)
    ).eval()


@pytest.mark.parametrize("family", ["bart", "t5", "clip"])
def test_both_sides_are_pruned(family):
    model = two_sided(family)
    batch = {"input_ids": torch.randint(3, 60, (2, 8))}
    more = (
        {"pixel_values": torch.randn(2, 3, 28, 28)} if family == "clip" else {"decoder_input_ids": batch["input_ids"]}
    )
    report = prune_model(model, [batch | more] * 3, sparsity=0.5, solver="wanda")
    names = " ".join(layer.name for layer in report.layers)
    sides = ("text_model.", "vision_model.") if family == "clip" else ("encoder.", "decoder.")
    assert all(side in names for side in sides)
    for layer in report.layers:
        assert (model.get_parameter(layer.parameter)[~report.masks[layer.parameter]] == 0).all()
    assert report.coverage.covered > 0.5
    assert not report_notices(report)


def test_a_vision_tower_that_text_does_not_reach_is_told():
    report = prune_model(tiny_model("gemma3_vision"), BATCHES, sparsity=0.5, solver="wanda")
    side, low = report_notices(report)
    assert side.startswith("one side of the model was not pruned: 24 layers (model.vision_tower")
    assert low.startswith("only ") and "matrices are in pruned layers (21 of" in low


def test_the_share_is_of_matrices_and_of_all_parameters():
    model = tiny_model("llama")
    report = prune_model(model, BATCHES, sparsity=0.5, solver="wanda")
    found = report.coverage
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2]
    assert (found.layers, found.of.matrices) == (21, 21)
    assert found.of.weights == found.layer_weights == sum(p.numel() for p in matrices)
    assert found.pruned_weights == sum(int((p == 0).sum()) for p in matrices)
    assert found.pruned == 0.5 and found.covered == 1.0 and not found.is_low
    assert found.pruned_of_parameters == found.pruned_weights / sum(p.numel() for p in model.parameters())
    assert "pruned: 50.0% of the weights of the model's matrices (21 of 21 matrices;" in str(report)
    assert report.to_dict()["coverage"]["covered"] == 1.0


def test_what_the_user_leaves_alone_is_no_notice_but_counts():
    options = PruneOptions(include=("*.q_proj",))
    report = prune_model(tiny_model("llama"), BATCHES, sparsity=0.5, solver="wanda", options=options)
    assert report.coverage.covered < 0.2 and not report.coverage.is_low and not report_notices(report)


def test_layers_with_too_few_tiles_for_a_dense_one_are_told():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16))
    report = prune_model(model, [torch.randn(32, 8)], pattern="2:4,dense=0.25,tile=4", solver="wanda")
    assert [int(report.masks[f"{name}.weight"].all(dim=1).sum()) for name in "02"] == [0, 4]
    (notice,) = report_notices(report)
    assert notice.startswith("1 layers have no dense rows (0): the share of dense tiles in pattern '2:4,dense=0.25")
    report = prune_model(model, [torch.randn(32, 8)], pattern="2:4,dense=0", solver="wanda")
    assert not report_notices(report)


def test_misfits_are_refused_or_skipped():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8))
    batches = [torch.randn(32, 12) for _ in range(2)]
    with pytest.raises(
        RelaxPruneError, match=r"layer '2' of shape \(8, 10\) does not fit: .*skip_misfits=True \(--skip-"
    ):
        plan_model(model, pattern="2:4")
    options = PruneOptions(skip_misfits=True)
    report = prune_model(model, batches, pattern="2:4", options=options)
    assert [layer.name for layer in report.layers] == ["0", "4"]
    ((name, reason),) = [(layer.name, layer.reason) for layer in report.skipped]
    assert name == "2" and reason.startswith("misfit: does not fit: ")
    assert report_notices(report)[0].startswith("1 layers do not fit and were not pruned (2): does not fit")
    with pytest.raises(RelaxPruneError, match="does not fit"):
        prune_model(model, batches, pattern="4:7", options=options)
