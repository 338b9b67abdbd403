"""Masks whose weights move: error after refitting, products and seconds, of every method on the same layers.

    python docs/benchmarks/weights.py --rows 64 LAYER.safetensors …

Objectives are computed here, in float64, from weight, Gram and the weights that come back; each is given over the
objective of Wanda's mask with its weights as they were. Rows are taken from the top.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import FAILURES, Layer, head, line, objective, polytope, read_layers

from relaxprune import KSparse, MaskProblem, ReconstructionProblem, solve
from relaxprune.problems import Polytope

METHODS: dict[str, dict[str, Any]] = {
    "wanda": {"solver": "wanda"},
    "swap": {"solver": "swap"},
    "fw": {"solver": "fw"},
    "sparsegpt": {"solver": "sparsegpt"},
    "alps": {"solver": "alps"},
    "reconstruct, fast": {"effort": "fast"},
    "reconstruct": {},
    "reconstruct, best": {"effort": "best"},
    "reconstruct + obs-swap": {"polish": "obs-swap"},
    "reconstruct, best + obs-swap": {"effort": "best", "polish": "obs-swap"},
}


def set_of(pattern: str, shape: tuple[int, int]) -> Polytope:
    """Return the masks of "50%" (of every row), "50% of all" (of the matrix) or "2:4"."""
    if pattern.endswith("% of all"):
        return KSparse.from_sparsity(float(pattern.removesuffix("% of all")) / 100, shape, per="layer")
    return polytope(pattern, shape)


def measured(layer: Layer, pattern: str, method: str, damping: float) -> tuple[str, str, str]:
    """Return error over Wanda's, products and seconds of one solve, as text; what fails says so."""
    _, weight, gram = layer
    masks = set_of(pattern, (weight.shape[0], weight.shape[1]))
    wanda = objective(weight, gram, solve(MaskProblem(weight, gram, masks), "wanda").mask)
    try:
        found = solve(ReconstructionProblem(weight, gram, masks, damping=damping), **METHODS[method])
    except FAILURES as error:
        return f"failed: {type(error).__name__}: {error}", "", ""
    assert found.weight is not None
    moved = (weight - found.weight).to(torch.float64)
    lost = float(((moved @ gram.to(torch.float64)) * moved).sum())
    return f"{lost / wanda:.4f}", f"{found.stats.products:.0f}", f"{found.stats.seconds:.2f}"


def main() -> None:
    """Print three tables: errors, products, seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="from collect.py")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--patterns", default="50%,60%,2:4")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--damping", type=float, default=0.0)
    arguments = parser.parse_args()
    rows: list[tuple[str, str, list[tuple[str, str, str]]]] = []
    for layer in read_layers(arguments.files, arguments.rows):
        for pattern in arguments.patterns.split(","):
            cells = [measured(layer, pattern, method, arguments.damping) for method in arguments.methods]
            rows.append((layer[0], pattern, cells))
    for place, title in enumerate(("Error over Wanda's", "Matrix products", "Seconds")):
        print(f"\n{title}:\n")
        head("layer", "set", *arguments.methods)
        for name, pattern, cells in rows:
            line(name, pattern, *(cell[place] for cell in cells))


if __name__ == "__main__":
    main()
