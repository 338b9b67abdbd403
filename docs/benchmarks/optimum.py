"""How far from the proven optimum masks are, on the first rows and columns cut from a real layer.

    python docs/benchmarks/optimum.py --rows 16 --cols 48 15.v.safetensors

Row by row: `exact` by SCIP, and by DAQP as a second opinion; then every other method on all rows, as excess over the
sum of the optima.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from safetensors.torch import load_file

from relaxprune import KSparse, MaskProblem, Solution, Status, solve

METHODS: tuple[dict[str, Any], ...] = (
    {"solver": "fw"},
    {"solver": "ils", "max_iterations": 200},
    {"solver": "admm"},
    {"solver": "fista"},
    {"solver": "dicg"},
    {"solver": "swap"},
    {"solver": "sparsefw"},
    {"solver": "wanda"},
)


def rows_by(problem: MaskProblem, backend: str, limit: float) -> tuple[list[Solution], float]:
    """Solve each row alone and return the solutions and the seconds."""
    started = time.perf_counter()
    rows = range(problem.shape[0])
    found = [solve(problem.rows(slice(i, i + 1)), "exact", backend=backend, time_limit_s=limit) for i in rows]
    return found, time.perf_counter() - started


def main() -> None:
    """Print what is proven, and a table of excesses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--cols", type=int, default=48)
    parser.add_argument("--time-limit", type=float, default=37.0, help="seconds a row")
    arguments = parser.parse_args()
    for file in arguments.files:
        tensors = load_file(file)
        weight = tensors["weight"][: arguments.rows, : arguments.cols].contiguous()
        gram = tensors["gram"][: arguments.cols, : arguments.cols].contiguous()
        problem = MaskProblem(weight, gram, KSparse.from_sparsity(0.5, (weight.shape[0], weight.shape[1])))
        print(f"{file.rpartition('/')[2]}: {weight.shape[0]} rows x {weight.shape[1]} columns, 50 %")
        exact, seconds = rows_by(problem, "scip", arguments.time_limit)
        proven = [row.status is Status.OPTIMAL for row in exact]
        print(f"exact (SCIP): {sum(proven)} rows OPTIMAL in {seconds:.1f} s")
        second, seconds = rows_by(problem, "daqp", arguments.time_limit)
        both = [i for i, row in enumerate(second) if row.status is Status.OPTIMAL and proven[i]]
        agree = sum(abs(second[i].objective - exact[i].objective) <= 1e-9 * exact[i].objective for i in both)
        print(f"exact (DAQP): finished {len(both)} of them in {seconds:.1f} s and agrees on {agree}")
        best = sum(row.objective for row in exact)
        print("\n| method | excess over the optimum | seconds |\n| --- | --- | --- |")
        for options in METHODS:
            started = time.perf_counter()
            excess = solve(problem, **options).objective / best - 1
            shown = round(100 * excess, 2) + 0.0  # never "-0.00"
            print(f"| {options['solver']} | {shown:.2f} % | {time.perf_counter() - started:.2f} |", flush=True)
        print()


if __name__ == "__main__":
    main()
