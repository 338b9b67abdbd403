"""How much of the objective each method proves, and in what time, on the first rows of real layers.

python docs/benchmarks/certificates.py --rows 64 --time-limit 120 15.v.safetensors 15.o.safetensors

The masks are those of `fw` with its defaults.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from safetensors.torch import load_file

from relaxprune import KSparse, MaskProblem, certify, solve


def main() -> None:
    """Print one line per layer and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--time-limit", type=float, default=120.0, help="seconds for sdp")
    arguments = parser.parse_args()
    print("| layer | method | relative gap | seconds | rows by method |\n| --- | --- | --- | --- | --- |")
    for file in arguments.files:
        tensors = load_file(file)
        weight = tensors["weight"][: arguments.rows]
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        problem = MaskProblem(weight, tensors["gram"], KSparse.from_sparsity(arguments.sparsity, shape))
        solution = solve(problem)
        for method in ("fw", "diagonal", "sdp"):
            started = time.perf_counter()
            limit = arguments.time_limit if method == "sdp" else None
            found = certify(problem, solution, method, time_limit_s=limit)
            used = ", ".join(f"{name} {count}" for name, count in found.checks["rows_by_method"].items() if count)
            seconds = time.perf_counter() - started
            print(f"| {Path(file).stem} | {method} | {found.relative_gap:.3f} | {seconds:.1f} | {used} |")


if __name__ == "__main__":
    main()
