"""Solve a layer of the size of Llama-3-8B's down projection in row blocks and print the peak memory.

python docs/benchmarks/large_layer.py 4096 14336 300

The last argument is a time limit in seconds: iterations, rounding and swap descent share it.
"""

from __future__ import annotations

import resource
import sys
import time

import torch

from relaxprune import KSparse, MaskProblem, solve


def main(rows: int, cols: int, limit: int) -> None:
    """Build a random layer with a low-rank-plus-noise Gram, solve it and print seconds and peak memory."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=generator)
    factor = torch.randn(cols // 8, cols, generator=generator)
    gram = torch.mm(factor.T, factor).div_(len(factor))
    gram.diagonal().add_(1.0)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started = time.perf_counter()
    problem = MaskProblem(weight, gram, KSparse.from_sparsity(0.5, (rows, cols)))
    solution = solve(problem, time_limit_s=limit, memory_budget_bytes=2**29)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(solution)
    print(f"{rows} x {cols}, time limit {limit} s, memory_budget_bytes = {2**29}, {solution.stats}")
    print(f"{seconds:.0f} s, peak {peak:.2f} GiB ({base:.2f} GiB with weight and Gram alone)")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]))
