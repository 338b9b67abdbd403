"""Masks of real layers: objective relative to Wanda's mask, products, rounding loss and gap.

    python docs/benchmarks/layers.py --rows 32 layer1.safetensors layer2.safetensors

Each file holds `weight` (rows, cols) and `gram` (cols, cols).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from safetensors.torch import load_file

from relaxprune import NM, KSparse, MaskProblem, solve
from relaxprune.problems import Polytope

SPARSEFW_ALPHAS = (0.25, 0.5, 0.75, 0.9)


def row(name: str, problem: MaskProblem, what: str, wanda: float, **options: Any) -> None:
    """Solve once and print one line."""
    started = time.perf_counter()
    solution = solve(problem, **options)
    seconds = time.perf_counter() - started
    loss = solution.rounding_loss
    shown = "" if loss is None else f"{100 * loss / solution.objective:.2f} %"
    print(
        f"| {name} | {what} | {solution.objective / wanda:.4f} | {solution.stats.products:.0f} | {shown} "
        f"| {solution.relative_gap:.2f} | {seconds:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--sparsefw", action="store_true", help="SparseFW at four alphas too")
    arguments = parser.parse_args()
    print("| layer | method | / Wanda's objective | products | rounding loss | relative gap | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file in arguments.files:
        tensors = load_file(file)
        weight = tensors["weight"][: arguments.rows].contiguous()
        short = file.rpartition("/")[2].removesuffix(".safetensors")
        sets: list[tuple[str, Polytope]] = [
            ("50 %", KSparse.from_sparsity(0.5, (weight.shape[0], weight.shape[1]))),
            ("60 %", KSparse.from_sparsity(0.6, (weight.shape[0], weight.shape[1]))),
            ("2:4", NM(2, 4)),
        ]
        for pattern, polytope in sets:
            problem = MaskProblem(weight, tensors["gram"], polytope)
            name = f"{short} {pattern}"
            wanda = solve(problem, "wanda").objective
            row(name, problem, "fw (default)", wanda)
            row(name, problem, "fw, 100 iterations", wanda, max_iterations=100)
            row(name, problem, "1-swap from Wanda", wanda, solver="swap")
            for alpha in SPARSEFW_ALPHAS if arguments.sparsefw else ():
                for at_most in (False, True):
                    options = {"solver": "sparsefw", "alpha": alpha, "at_most": at_most}
                    row(name, problem, f"sparsefw alpha={alpha} at_most={at_most}", wanda, **options)


if __name__ == "__main__":
    main()
