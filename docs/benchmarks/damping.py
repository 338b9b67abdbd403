"""Weights that move, judged on text that they were not fitted to: what damping does to it.

    python docs/benchmarks/damping.py --calibration wikitext2.txt --unseen wikitext2.txt builtin

Grams of the dense model on calibration text, and on held-out text of the same and of other kinds; mask and weights are
solved on the first, and their error is taken on the others, over that of `sparsegpt` as published.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from common import head, line, model_grams, polytope
from torch import Tensor

from relaxprune import ReconstructionProblem, load_model, solve
from relaxprune.models.layers import find_layers
from relaxprune.models.loading import LoadOptions
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows

KINDS = ("self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
METHODS = (
    ("sparsegpt", 0.01), ("alps", 0.01), ("alps", 0.03), ("reconstruct", 0.01), ("reconstruct", 0.03),
    ("reconstruct", 0.1),
)  # fmt: skip


def error(weight: Tensor, new: Tensor, gram: Tensor) -> float:
    """Return the share of a layer's output energy that is lost, float64."""
    wide, wider = gram.double(), weight.double()
    lost = wider - new.double()
    return float(((lost @ wide) * lost).sum() / ((wider @ wide) * wider).sum())


def main() -> None:
    """Print the table of each set of masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--calibration", default="builtin", help="builtin or a text file")
    parser.add_argument("--unseen", nargs="+", default=["builtin"], help="texts whose held-out parts are read")
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--blocks", type=int, nargs="+", default=[5, 20])
    parser.add_argument("--rows", type=int, default=96, help="of each layer")
    parser.add_argument("--patterns", nargs="+", default=["50%", "2:4"])
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, LoadOptions())
    names = [f"model.layers.{block}.{kind}" for block in arguments.blocks for kind in KINDS]
    weights = {
        layer.name: layer.matrix()[: arguments.rows].float()
        for layer in find_layers(loaded.model)[0]
        if layer.name in names
    }
    options = CalibrationOptions(windows=arguments.windows, length=arguments.length)
    unseen = CalibrationOptions(windows=arguments.windows // 2, length=arguments.length)
    tokens = calibration_windows(arguments.calibration, loaded.tokenizer, options, model=loaded.model).tokens
    grams = {"calibration": model_grams(loaded.model, tokens, names)}
    for source in arguments.unseen:
        held_out = evaluation_windows(source, loaded.tokenizer, unseen).tokens
        grams[f"unseen, {Path(source).stem}"] = model_grams(loaded.model, held_out, names)
    head("set", "method", "damping", *grams)
    for pattern in arguments.patterns:
        first: dict[str, list[float]] = {}
        for solver, damping in METHODS:
            errors: dict[str, list[float]] = {text: [] for text in grams}
            for name, weight in weights.items():
                gram = grams["calibration"][name]
                problem = ReconstructionProblem(weight, gram, polytope(pattern, tuple(weight.shape)), damping=damping)
                new = solve(problem, solver).weight
                assert new is not None
                for text, others in grams.items():
                    errors[text].append(error(weight, new, others[name]))
            first = first or errors
            ratios = {
                text: sum(one / other for one, other in zip(values, first[text], strict=True)) / len(values)
                for text, values in errors.items()
            }
            line(pattern, solver, damping, *ratios.values())


if __name__ == "__main__":
    main()
