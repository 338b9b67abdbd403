"""Frank-Wolfe against greedy masks on synthetic and real layers: error and gap against matrix products.

    python docs/benchmarks/greedy.py --rows 32 --plot greedy.png 15.v.safetensors 15.o.safetensors

Every budget is a run of its own, so that each point is what a user who stops there gets. The objective of a mask is
computed here, in float64; so is the relative Frank-Wolfe gap at the relaxed mask. Greedy masks have no budget: one
selection, or for `swap` a descent by exact best exchanges from Wanda's mask.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from common import FAILURES, Layer, gap, head, line, objective, picture, polytope, random_layer, read_layers
from matplotlib.axes import Axes

from relaxprune import MaskProblem, solve

BUDGETS = (5, 10, 20, 40, 80, 160, 320, 640, 1280)
METHODS: dict[str, dict[str, Any]] = {
    "fw, plain": {"solver": "fw", "anneal": False, "polish": None},
    "fw, tightened": {"solver": "fw", "anneal": False, "tighten": "diagonal", "polish": None},
    "fw, annealed": {"solver": "fw"},
    "sparsefw, alpha 0.75": {"solver": "sparsefw", "alpha": 0.75, "at_most": False},
}
GREEDY = ("magnitude", "ria", "swap")
TOP = 1.3  # of the objectives shown; early iterates of SparseFW are far above
DECAYS = (0.0, 0.5, 1.0, 2.0)
Point = tuple[float, float, float | None]  # products, objective over Wanda's, gap


def synthetic(rows: int, cols: int) -> Iterator[Layer]:
    """Return random layers, from uncorrelated inputs to ones with few directions."""
    for decay in DECAYS:
        yield f"decay {decay:g}", *random_layer(rows, cols, decay)


def point(problem: MaskProblem, wanda: float, options: dict[str, Any]) -> Point | str:
    """Solve once; return the point, or what went wrong."""
    try:
        solution = solve(problem, **options)
    except FAILURES as error:
        return str(error)
    own_gap = None
    if solution.relaxed_mask is not None and solution.options.get("tighten") != "diagonal":
        own_gap = gap(problem, solution.relaxed_mask)
    ratio = objective(problem.weight, problem.gram, solution.mask) / wanda
    return solution.stats.products, ratio, own_gap


def curves(name: str, problem: MaskProblem, most: int) -> dict[str, list[Point]]:
    """Print the lines of one layer; return the points of each method."""
    wanda = objective(problem.weight, problem.gram, solve(problem, "wanda").mask)
    budgets = [budget for budget in BUDGETS if budget <= most]
    runs = [
        (method, {**options, "max_iterations": budget}) for method, options in METHODS.items() for budget in budgets
    ]
    runs += [(method, {"solver": method}) for method in GREEDY]
    found: dict[str, list[Point]] = {}
    for method, options in runs:
        result = point(problem, wanda, options)
        if isinstance(result, str):
            line(name, method, "failed", result, "")
            continue
        found.setdefault(method, []).append(result)
        if options.get("max_iterations", most) in (20, 160, budgets[-1]) or method in GREEDY:
            products, ratio, own_gap = result
            line(name, method, f"{products:.0f}", ratio, "" if own_gap is None else f"{own_gap:.2g}")
    return found


def panel(title: str, found: dict[str, list[Point]], gaps: bool, axes: Axes) -> None:
    """Draw objectives, or gaps, against products."""
    for method, points in found.items():
        if method in GREEDY:
            if not gaps and points[0][1] < 1.3:
                axes.axhline(points[0][1], color="grey", linestyle=":", linewidth=1)
                axes.annotate(method, (1.0, points[0][1]), xycoords=("axes fraction", "data"), fontsize=7, ha="right")
            continue
        shown = [(products, own_gap if gaps else ratio) for products, ratio, own_gap in points]
        shown = [(x, y) for x, y in shown if y is not None]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker=".", label=method)
    axes.set(title=title, xscale="log", xlabel="matrix products")
    axes.set_ylabel("relative Frank-Wolfe gap" if gaps else "objective / Wanda's")
    if gaps:
        axes.set_yscale("log")
    else:
        axes.set_ylim(top=TOP)
    axes.legend(fontsize="x-small")


def main() -> None:
    """Print a table in Markdown, and draw the curves if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="from collect.py; synthetic layers alone without any")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--cols", type=int, default=512, help="of the synthetic layers")
    parser.add_argument("--pattern", default="50%")
    parser.add_argument("--most", type=int, default=BUDGETS[-1], help="the largest budget of iterations")
    parser.add_argument("--plot", default=None)
    arguments = parser.parse_args()
    head("layer", "method", "products", "objective / Wanda's", "relative Frank-Wolfe gap")
    found: dict[str, dict[str, list[Point]]] = {}
    for name, weight, gram in [
        *synthetic(arguments.rows, arguments.cols),
        *read_layers(arguments.files, arguments.rows),
    ]:
        masks = polytope(arguments.pattern, (weight.shape[0], weight.shape[1]))
        found[name] = curves(name, MaskProblem(weight, gram, masks), arguments.most)
    if arguments.plot:
        panels = [
            lambda axes, n=name, p=points, g=gaps: panel(n, p, g, axes)
            for gaps in (False, True)
            for name, points in found.items()
        ]
        picture(arguments.plot, panels, min(4, len(found)))


if __name__ == "__main__":
    main()
