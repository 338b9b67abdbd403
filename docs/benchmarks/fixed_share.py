"""What fixing the most salient weights does: alpha · keep weights are kept beforehand, the others are optimised.

    python docs/benchmarks/fixed_share.py --rows 32 --plot fixed_share.png 15.v.safetensors 15.o.safetensors

Objectives relative to Wanda's mask. Four ways to a mask with the same weights fixed: `plain` is SparseFW (open-loop
steps, exact counts, the last iterate rounded), `swap` the same followed by exact 1-swap descent over all weights,
`tightened` Frank-Wolfe with line search on the relaxation tightened by the Gram's diagonal, rounded, and `annealed` the
default solver. Iterations of the first three are given by --iterations.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import FAILURES, Layer, head, line, objective, picture, polytope, read_layers
from matplotlib.axes import Axes
from torch import Tensor

from relaxprune import MaskProblem, solve
from relaxprune.problems import Face
from relaxprune.solvers.base import DEFAULT_MEMORY_BYTES

ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.8, 0.9, 0.95, 1.0)
METHODS = ("plain", "swap", "tightened", "annealed")
Curves = dict[str, list[float]]


def fixed(problem: MaskProblem, alpha: float) -> MaskProblem:
    """Return the problem with the alpha · keep weights that Wanda ranks first fixed to kept, as SparseFW fixes them."""
    shared = problem.over(problem.polytope.with_share(alpha))
    kept = shared.round_parts(lambda part: problem.score("wanda", rows=part), DEFAULT_MEMORY_BYTES)
    return problem.over(Face(problem.polytope, kept))


def objectives(problem: MaskProblem, alpha: float, iterations: int) -> tuple[float, ...]:
    """Return the objectives of the four masks, nan for one that failed."""
    found: dict[str, Tensor | None] = {}
    try:
        plain = solve(problem, "sparsefw", alpha=alpha, at_most=False, max_iterations=iterations).mask
        found["plain"], found["swap"] = plain, solve(problem, "swap", start=plain).mask
        face = fixed(problem, alpha)
        relaxed: dict[str, Any] = {"anneal": False, "tighten": "diagonal", "polish": None}
        found["tightened"] = solve(face, "fw", max_iterations=iterations, **relaxed).mask
        found["annealed"] = solve(face, "fw").mask
    except FAILURES as error:
        print(f"\nfailed at alpha = {alpha}: {error}\n")
    masks = [found.get(method) for method in METHODS]
    return tuple(float("nan") if mask is None else objective(problem.weight, problem.gram, mask) for mask in masks)


def layer(name: str, pattern: str, problem: MaskProblem, iterations: int) -> Curves:
    """Print the lines of one layer and pattern; return its curves."""
    wanda = objective(problem.weight, problem.gram, solve(problem, "wanda").mask)
    curves: Curves = {method: [] for method in METHODS}
    for alpha in ALPHAS:
        found = [value / wanda for value in objectives(problem, alpha, iterations)]
        for method, value in zip(METHODS, found, strict=True):
            curves[method].append(value)
        line(f"{name} {pattern}", f"{alpha:g}", *found)
    return curves


def panel(title: str, curves: Curves, axes: Axes) -> None:
    """Draw the curves of one layer."""
    for method, values in curves.items():
        axes.plot(ALPHAS, values, marker=".", label=method)
    axes.set(title=title, xlabel="fixed share alpha", ylabel="objective / Wanda's")
    axes.legend(fontsize="small")


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="from collect.py")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--patterns", default="50%,60%,2:4")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--plot", default=None)
    arguments = parser.parse_args()
    head("layer", "alpha", *METHODS)
    layers: list[Layer] = list(read_layers(arguments.files, arguments.rows))
    found: dict[str, Curves] = {}
    for name, weight, gram in layers:
        for pattern in arguments.patterns.split(","):
            problem = MaskProblem(weight, gram, polytope(pattern, (weight.shape[0], weight.shape[1])))
            found[f"{name} {pattern}"] = layer(name, pattern, problem, arguments.iterations)
    if arguments.plot:
        panels = [lambda axes, t=title, c=curves: panel(t, c, axes) for title, curves in found.items()]
        picture(arguments.plot, panels, len(arguments.patterns.split(",")))


if __name__ == "__main__":
    main()
