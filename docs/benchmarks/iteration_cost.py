"""What one iteration of `fw` costs, in matrix products of the same shape, dtype and threads, in the same run.

python docs/benchmarks/iteration_cost.py 2048 2048
"""

from __future__ import annotations

import sys
import time

import torch

from relaxprune import KSparse, MaskProblem
from relaxprune.solvers import Budget, Run
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe

ITERATIONS = 30
REPEATS = 5


def main(rows: int, cols: int) -> None:
    """Print the ratio for a random layer with correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, cols, generator=generator)
    inputs = torch.randn(2 * cols, cols, generator=generator) + torch.randn(2 * cols, 1, generator=generator)
    gram = inputs.T @ inputs / len(inputs)
    problem = MaskProblem(weight, gram, KSparse.from_sparsity(0.5, weight.shape))
    working, solver = problem.working(), FrankWolfe()
    start = problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.float(), Budget.of(solver, Run(start=start)))
    ratios = []
    for _ in range(REPEATS):  # the first in the convex phase, the others while annealing
        started = time.perf_counter()
        for _ in range(10):
            torch.mm(weight, working.gram)
        product = (time.perf_counter() - started) / 10
        started = time.perf_counter()
        for _ in range(ITERATIONS):
            solver.step(working, state)
        ratios.append((time.perf_counter() - started) / ITERATIONS / product)
    ratios.sort()
    print(f"{rows} x {cols}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"one product: {product * 1e3:.1f} ms (last repeat)")
    print(f"one iteration / one product: median {ratios[REPEATS // 2]:.2f} (min {ratios[0]:.2f}, max {ratios[-1]:.2f})")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
