"""Masks whose weights move: error after refitting, products and seconds, of every method on the same layers.

    python docs/benchmarks/weights.py --rows 64 LAYER.safetensors …

Objectives are computed here, in float64, from weight, Gram and the weights that come back; each is given over the
objective of Wanda's mask with its weights as they were. Whole matrices of 256 MiB of factors at most: rows are taken
from the top.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import FAILURES, head, line, objective
from safetensors.torch import load_file

from relaxprune import NM, KSparse, MaskProblem, ReconstructionProblem, solve
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


def sets(cols: int, rows: int, patterns: list[str]) -> dict[str, Polytope]:
    """Return the sets asked for: "50%" of every row, "50% of all" of the matrix, "2:4"."""
    found: dict[str, Polytope] = {}
    for pattern in patterns:
        if pattern.endswith("% of all"):
            found[pattern] = KSparse.from_sparsity(float(pattern[:-8]) / 100, (rows, cols), per="layer")
        elif pattern.endswith("%"):
            found[pattern] = KSparse.from_sparsity(float(pattern[:-1]) / 100, (rows, cols))
        else:
            found[pattern] = NM.from_pattern(pattern)
    return found


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="from collect.py")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--patterns", default="50%,60%,2:4")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--damping", type=float, default=0.0)
    arguments = parser.parse_args()
    head("layer", "set", "method", "error / Wanda's", "relative gap", "products", "seconds")
    for file in arguments.files:
        tensors = load_file(file)
        weight, gram = tensors["weight"][: arguments.rows], tensors["gram"]
        name = file.rpartition("/")[2].removesuffix(".safetensors")
        for pattern, polytope in sets(weight.shape[1], len(weight), arguments.patterns.split(",")).items():
            wanda = objective(weight, gram, solve(MaskProblem(weight, gram, polytope), "wanda").mask)
            for method in arguments.methods:
                try:
                    problem = ReconstructionProblem(weight, gram, polytope, damping=arguments.damping)
                    found = solve(problem, **METHODS[method])
                except FAILURES as error:
                    line(name, pattern, method, f"failed: {type(error).__name__}: {error}", "", "", "")
                    continue
                assert found.weight is not None
                moved = (weight - found.weight).to(torch.float64)
                lost = float(((moved @ gram.to(torch.float64)) * moved).sum())
                stats = found.stats
                line(name, pattern, method, lost / wanda, found.relative_gap, f"{stats.products:.0f}", stats.seconds)


if __name__ == "__main__":
    main()
