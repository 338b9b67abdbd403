"""Masks of real layers by several methods: objective relative to Wanda's mask, products, rounding loss, gap, seconds.

    python docs/benchmarks/layers.py --rows 32 --methods fw,swap layer1.safetensors layer2.safetensors

Each file holds `weight` (rows, cols) and `gram` (cols, cols). Seconds of one layer are taken in one run, one method
after the other.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from common import label, polytope, read_layers

from relaxprune import MaskProblem, solve

METHODS: dict[str, tuple[dict[str, Any], ...]] = {
    "fw": ({"solver": "fw"},),
    "fw-100": ({"solver": "fw", "max_iterations": 100},),
    "precision": tuple(
        {"solver": "fw", "effort": effort, "precision": precision}
        for effort in ("fast", "default")
        for precision in ("full", "bf16")
    ),
    "swap": ({"solver": "swap"},),
    "oneshot": ({"solver": "magnitude"}, {"solver": "ria"}),
    "sparsefw": tuple(
        {"solver": "sparsefw", "alpha": alpha, "at_most": at_most}
        for at_most in (False, True)
        for alpha in (0.25, 0.5, 0.75, 0.9)
    ),
    "sparsefw+swap": tuple({"solver": "sparsefw", "alpha": a, "polish": "swap"} for a in (0.25, 0.5, 0.75, 0.9)),
    "relaxations": (
        {"solver": "fw", "anneal": False, "max_iterations": 2000},
        {"solver": "dicg"},
        {"solver": "fista"},
        {"solver": "fista", "max_iterations": 1000},
        {"solver": "admm", "variant": "relaxed"},
    ),
    "admm": ({"solver": "admm"},),
    "ils": ({"solver": "ils", "time_limit_s": 60.0},),
}
PATTERNS = ("50%", "60%", "2:4")


def line(name: str, problem: MaskProblem, wanda: float, options: dict[str, Any]) -> None:
    """Solve once and print one line."""
    started = time.perf_counter()
    solution = solve(problem, **options)
    seconds = time.perf_counter() - started
    loss = solution.rounding_loss
    shown = "" if loss is None else f"{100 * loss / solution.objective:.2f} %"
    print(
        f"| {name} | {label(options)} | {solution.objective / wanda:.4f} | {solution.stats.products:.0f} | {shown} "
        f"| {solution.relative_gap:.2f} | {seconds:.2f} |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of every layer")
    parser.add_argument("--methods", default="fw,fw-100,swap", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--patterns", default=",".join(PATTERNS))
    arguments = parser.parse_args()
    print("| layer | method | / Wanda's objective | products | rounding loss | relative gap | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for short, weight, gram in read_layers(arguments.files, arguments.rows):
        for pattern in arguments.patterns.split(","):
            problem = MaskProblem(weight, gram, polytope(pattern, (weight.shape[0], weight.shape[1])))
            wanda = solve(problem, "wanda").objective
            for method in arguments.methods.split(","):
                for options in METHODS[method]:
                    line(f"{short} {pattern}", problem, wanda, options)


if __name__ == "__main__":
    main()
