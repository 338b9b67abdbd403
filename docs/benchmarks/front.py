"""Error against time: every way to choose a mask, on the same layers, in one run.

    python docs/benchmarks/front.py --rows 32 --plot front.png 15.v.safetensors 15.o.safetensors

The objective of each mask is computed here, in float64, from weight and Gram; only solving is timed, preparation of the
problem included, and the least of the repeats counts. What fails stays in the table. Seconds are also given in those of
SparseFW at T = 2000, taken as the smaller of the measured time and of 2000 times one product and one selection of the
largest entries of the same shape, so that no slow rival flatters anybody.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from common import FAILURES, Layer, label, objective, polytope, read_layers

from relaxprune import KSparse, MaskProblem, solve
from relaxprune.problems import Polytope

SPARSEFW = 2000
METHODS: tuple[dict[str, Any], ...] = (
    {"solver": "fw", "effort": "fast"},
    {"solver": "fw", "effort": "default"},
    {"solver": "fw", "effort": "best"},
    {"solver": "sparsefw", "alpha": 0.25},
    {"solver": "sparsefw", "alpha": 0.5},
    {"solver": "sparsefw", "alpha": 0.75},
    {"solver": "sparsefw", "alpha": 0.9},
    {"solver": "sparsefw", "alpha": 0.75, "polish": "swap"},
    {"solver": "swap"},
    {"solver": "wanda"},
    {"solver": "ria"},
    {"solver": "magnitude"},
    {"solver": "admm"},
    {"solver": "fista"},
    {"solver": "dicg"},
)


@dataclass
class Point:
    """One method on one layer."""

    name: str
    ratio: float | None  # to Wanda's objective, None where the method failed
    seconds: float
    products: float
    note: str = ""


def run(weight: torch.Tensor, gram: torch.Tensor, masks: Polytope, options: dict[str, Any], repeats: int) -> Point:
    """Solve some times, from a problem without anything prepared, and keep the least time."""
    name, best = label(options), float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        try:
            solution = solve(MaskProblem(weight, gram, masks), **options)
        except FAILURES as error:
            return Point(name, None, time.perf_counter() - started, 0.0, str(error))
        best = min(best, time.perf_counter() - started)
    return Point(name, objective(weight, gram, solution.mask), best, solution.stats.products, solution.status.name)


def floor(weight: torch.Tensor, gram: torch.Tensor, masks: Polytope) -> float:
    """Return the seconds of 2000 products and selections."""
    keep = masks.keep if isinstance(masks, KSparse) else weight.shape[1] // 2
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(10):
            scores = torch.mm(weight, gram)
            scores.topk(keep, dim=1, sorted=False)
        seconds.append((time.perf_counter() - started) / 10)
    return SPARSEFW * min(seconds)


def layer(read: Layer, pattern: str, repeats: int) -> tuple[str, list[Point], float]:
    """Run all methods on one layer; return its name, the points and SparseFW's time."""
    name, weight, gram = read
    masks = polytope(pattern, (weight.shape[0], weight.shape[1]))
    run(weight[:8].contiguous(), gram, masks, {"solver": "fw", "effort": "fast"}, 1)  # what a first call costs alone
    wanda = objective(weight, gram, solve(MaskProblem(weight, gram, masks), "wanda").mask)
    points = []
    for options in METHODS:
        once = options["solver"] == "sparsefw" or options.get("effort") == "best"
        point = run(weight, gram, masks, options, 1 if once else repeats)
        point.ratio = None if point.ratio is None else point.ratio / wanda
        points.append(point)
    rival = min([floor(weight, gram, masks), *(p.seconds for p in points if p.name == "sparsefw alpha=0.75")])
    return f"{name} {pattern}", points, rival


def plot(results: list[tuple[str, list[Point], float]], path: str) -> None:
    """Draw one panel per layer: objective over Wanda's against seconds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(4.2 * len(results), 4), squeeze=False)
    for panel, (name, points, rival) in zip(panels[0], results, strict=True):
        shown = [point for point in points if point.ratio is not None and point.ratio <= 1.1]
        ours = [point for point in shown if point.name.startswith("fw ")]
        panel.plot([p.seconds / rival for p in ours], [p.ratio for p in ours], "o-", color="tab:blue", zorder=3)
        for point in shown:
            short = point.name.removeprefix("fw effort=").replace("alpha=", "").replace("polish=", "+ ")
            if point not in ours:
                panel.plot(point.seconds / rival, point.ratio, "x", color="tab:gray")
            panel.annotate(
                short, (point.seconds / rival, point.ratio), fontsize=6, xytext=(3, 3), textcoords="offset points"
            )
        panel.set(xscale="log", title=name, xlabel="time / SparseFW's", ylabel="objective / Wanda's")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Print one table per layer, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of every layer")
    parser.add_argument("--patterns", default="50%")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", default=None)
    arguments = parser.parse_args()
    results = []
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for pattern in arguments.patterns.split(","):
        for read in read_layers(arguments.files, arguments.rows):
            name, points, rival = layer(read, pattern, arguments.repeats)
            results.append((name, points, rival))
            print(f"\n{name}: SparseFW takes {rival:.2f} s\n")
            print("| method | objective / Wanda's | seconds | of SparseFW's | products | ended |")
            print("| --- | --- | --- | --- | --- | --- |")
            for p in points:
                ratio = "failed" if p.ratio is None else f"{p.ratio:.4f}"
                share = p.seconds / rival
                print(
                    f"| {p.name} | {ratio} | {p.seconds:.2f} | {share:.3f} | {p.products:.0f} | {p.note} |", flush=True
                )
    if arguments.plot is not None:
        plot(results, arguments.plot)


if __name__ == "__main__":
    main()
