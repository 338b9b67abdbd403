"""Least-squares weights on a mask of a large layer: seconds, peak memory, and what is left of the normal equations.

python docs/benchmarks/large_refit.py 4096 4096
"""

from __future__ import annotations

import sys
import time

import torch
from common import random_layer

from relaxprune import KSparse, ReconstructionProblem, refit
from relaxprune.problems.saliency import saliency
from relaxprune.support.memory import peak_memory_bytes

_GIB = 2**30


def main(rows: int, cols: int) -> None:
    """Build a random layer whose inputs' variances fall like those of a real one, and refit Wanda's mask of half."""
    weight, gram = random_layer(rows, cols)
    polytope = KSparse.from_sparsity(0.5, (rows, cols))
    mask = polytope.round(saliency("wanda", weight, gram.diagonal()))
    problem = ReconstructionProblem(weight, gram, polytope, damping=0.01)
    base = (peak_memory_bytes() or 0) / _GIB
    started = time.perf_counter()
    found = refit(problem, mask, memory_budget_bytes=2**29)
    seconds = time.perf_counter() - started
    peak = (peak_memory_bytes() or 0) / _GIB
    print(f"{rows} x {cols}, {torch.get_num_threads()} threads: {seconds:.0f} s, {found.products:.0f} products")
    print(f"peak {peak:.2f} GiB, of which {base:.2f} before refitting; memory_budget_bytes = 2**29")
    print(f"residual at most {float(found.residual.max()):.2g}; damped rows {int((found.damping > 0).sum())}")
    before = found.kept_objective / problem.reference
    print(f"error {found.relative_error:.4f}, with the weights as they were {before:.4f}")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:3]))
