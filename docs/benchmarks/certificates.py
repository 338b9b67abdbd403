"""How much of the objective each method proves, and in what time, on the first rows of real layers.

python docs/benchmarks/certificates.py 15.v.safetensors 15.o.safetensors --time-limits 120
python docs/benchmarks/certificates.py 15.v.safetensors --solver ils --draw 8 --time-limits 4 15 75 --plot curve.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from safetensors.torch import load_file

from relaxprune import KSparse, MaskProblem, Solution, certify, solve

Point = tuple[float, float]  # seconds a row, proven share of the objective


def main() -> None:
    """Print one line per layer and method, and draw the bound against time if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="safetensors with weight and gram")
    parser.add_argument("--rows", type=int, default=64, help="first rows of the layer that the problem consists of")
    parser.add_argument("--draw", type=int, help="how many of them sdp treats, drawn; default all")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--solver", default="fw", help="whose mask is certified")
    parser.add_argument("--time-limits", type=float, nargs="+", default=[120.0], help="seconds for sdp, one run each")
    parser.add_argument("--plot", type=Path, help="a PNG of the proven share against time")
    arguments = parser.parse_args()
    print("| layer | method | rows | relative gap | of the rows drawn | seconds | cuts a row |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    curves: dict[str, list[Point]] = {}
    for file in arguments.files:
        tensors = load_file(file)
        weight = tensors["weight"][: arguments.rows]
        shape = (int(weight.shape[0]), int(weight.shape[1]))
        problem = MaskProblem(weight, tensors["gram"], KSparse.from_sparsity(arguments.sparsity, shape))
        name = Path(file).stem
        curves[name] = measured(name, problem, solve(problem, arguments.solver), arguments)
    if arguments.plot:
        draw(curves, arguments.plot)


def measured(name: str, problem: MaskProblem, solution: Solution, arguments: argparse.Namespace) -> list[Point]:
    """Certify one mask by every method; return the points of its curve."""
    points: list[Point] = []
    for method, limit in [("fw", None), ("diagonal", None), *(("sdp", value) for value in arguments.time_limits)]:
        started = time.perf_counter()
        rows = arguments.draw if method == "sdp" else None
        found = certify(problem, solution, method, rows=rows, time_limit_s=limit)
        seconds = time.perf_counter() - started
        treated = found.checks["rows_by_method"]["sdp"]
        estimate = found.estimate
        proven = found.lower_bound / found.objective if estimate is None else estimate.lower_bound / found.objective
        drawn = "" if estimate is None else f"{1 - proven:.3f}"
        cuts = f"{len(found.proof.cut_row) / treated:.0f}" if treated else ""
        print(
            f"| {name} | {method} | {treated or len(solution.mask)} | {found.relative_gap:.3f} | {drawn} "
            f"| {seconds:.1f} | {cuts} |",
            flush=True,
        )
        if rows is None or estimate is not None:  # else the time ended before the drawn rows were treated
            points.append((seconds / (rows or len(solution.mask)), proven))
    return points


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Plot the proven share of the objective against the seconds spent on a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds a row (from left: fw, diagonal, sdp with more and more time)")
    axes.set_ylabel("proven share of the objective")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
