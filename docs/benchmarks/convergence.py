"""How fast solvers of the relaxation close their own Frank-Wolfe gap, counted in matrix products.

    python docs/benchmarks/convergence.py --rows 32 --out docs/benchmarks/convergence.png 15.v.safetensors

For every budget the solver starts anew; the gap ⟨∇f, m − v⟩ / f is recomputed in float64 at the relaxed mask that it
returns, so nothing here is a solver's own claim. `fw` runs without annealing: plain Frank-Wolfe with exact line
search. `dicg-pairwise` takes the published pairwise steps alone.
"""

from __future__ import annotations

import argparse
from typing import Any

from common import gap, read_layers
from matplotlib.figure import Figure

from relaxprune import KSparse, MaskProblem, solve

TARGET = 1e-6
SOLVERS: dict[str, dict[str, Any]] = {
    "fw": {"solver": "fw", "anneal": False},
    "dicg": {"solver": "dicg"},
    "dicg-pairwise": {"solver": "dicg", "in_face": False},
    "fista": {"solver": "fista"},
    "afw": {"solver": "afw"},
    "pfw": {"solver": "pfw"},
    "bpfw": {"solver": "bpfw"},
}
BUDGETS = (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)


def curve(problem: MaskProblem, options: dict[str, Any], most: int) -> tuple[list[float], list[float]]:
    """Return products and gaps, one pair per budget, until the target is met."""
    products, gaps = [], []
    for budget in (budget for budget in BUDGETS if budget <= most):
        solution = solve(
            problem, dtype="float64", max_iterations=budget, gap_tolerance=TARGET / 2, polish=None, **options
        )
        assert solution.relaxed_mask is not None
        products.append(solution.stats.products)
        gaps.append(gap(problem, solution.relaxed_mask))
        if gaps[-1] <= TARGET:
            break
    return products, gaps


def main() -> None:
    """Print one line per solver and layer, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rows", type=int, default=None)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--most", type=int, default=5120, help="the largest budget of iterations")
    parser.add_argument("--solvers", default=None, help=f"of {', '.join(SOLVERS)}")
    parser.add_argument("--out", default=None, help="a picture of the curves")
    arguments = parser.parse_args()
    figure = Figure(figsize=(5 * len(arguments.files), 4), layout="constrained")
    panels = figure.subplots(1, len(arguments.files), sharey=True, squeeze=False)[0]
    names = list(SOLVERS) if arguments.solvers is None else arguments.solvers.split(",")
    print("| layer | solver | products | relative Frank-Wolfe gap |")
    print("| --- | --- | --- | --- |")
    for (short, weight, gram), panel in zip(read_layers(arguments.files, arguments.rows), panels, strict=True):
        problem = MaskProblem(weight, gram, KSparse.from_sparsity(arguments.sparsity, tuple(weight.shape)))
        for name in names:
            products, gaps = curve(problem, SOLVERS[name], arguments.most)
            print(f"| {short} | {name} | {products[-1]:.0f} | {gaps[-1]:.2g} |", flush=True)
            panel.loglog(products, gaps, marker=".", label=name)
        panel.axhline(TARGET, color="grey", linewidth=0.8, linestyle=":")
        panel.set_title(f"{short}, {len(weight)} rows")
        panel.set_xlabel("matrix products")
    panels[0].set_ylabel("relative Frank-Wolfe gap")
    panels[-1].legend(fontsize="small")
    if arguments.out:
        figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
