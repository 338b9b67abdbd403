"""Layer errors of patterns with the same number of zeros: counts in rows, N:M, and rows that are dense or N:M.

    python docs/benchmarks/patterns.py --out patterns.json 15.o.safetensors 15.v.safetensors

prints a table for each layer: objective / that of Wanda's mask at 50 % in every row, for `fw` (default effort) and
Wanda, and the bound of `fw` in the same unit. A hybrid set is solved as N:M, once, and its dense tiles are chosen from
the rows' objectives, as ``solve`` does.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from relaxprune import NM, Hybrid, KSparse, MaskProblem, Polytope, Solution, solve

ZEROS = {
    0.25: ("rows", "12:16", "6:8", "3:4", "2:4,tile=1", "2:4,tile=16"),
    0.375: ("rows", "10:16", "5:8", "2:4,tile=1", "2:4,tile=16"),
    0.5: ("rows", "8:16", "4:8", "2:4", "1:4,tile=1"),
}


def pattern_set(pattern: str, zeros: float, shape: tuple[int, int]) -> Polytope:
    """Return the set of a pattern at a fraction of zeros."""
    if pattern == "rows":
        return KSparse.from_sparsity(zeros, shape)
    base, _, tile = pattern.partition(",tile=")
    return Hybrid.from_sparsity(base, zeros, shape, int(tile)) if tile else NM.from_pattern(base)


def measured(problem: MaskProblem, one: Polytope, solver: str, known: dict[str, Solution]) -> dict[str, Any]:
    """Return the objective and the bound of a set, and the seconds of the solve behind them."""
    apart = one.chosen_from() or one
    key = f"{solver} {apart!r}"
    if key not in known:
        known[key] = solve(problem.over(apart), solver, polish="auto" if solver == "fw" else None)
    found = known[key]
    objective, bound = found.block_objective, found.block_lower_bound
    if apart is not one:
        objective, bound = (values[~one.choice(values)] for values in (objective, bound))
    return {"objective": float(objective.sum()), "bound": float(bound.sum()), "seconds": found.stats.seconds}


def table(path: Path) -> list[dict[str, Any]]:
    """Measure a layer, print its table as it comes, and return the numbers."""
    tensors = load_file(path)
    weight = tensors["weight"].float()
    shape = (weight.shape[0], weight.shape[1])
    problem = MaskProblem(weight, tensors["gram"], KSparse.from_sparsity(0.5, shape))
    unit, started = solve(problem, "wanda", polish=None).objective, time.monotonic()
    print(f"\n{path.stem}, {shape[0]} x {shape[1]}\n\n| zeros | set | fw | bound | wanda |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    known: dict[str, Solution] = {}
    rows: list[dict[str, Any]] = []
    for zeros, patterns in ZEROS.items():
        for pattern in patterns:
            one = pattern_set(pattern, zeros, shape)
            one.validate(shape)
            fw, wanda = (measured(problem, one, solver, known) for solver in ("fw", "wanda"))
            pruned = 1 - one.kept(shape) / weight.numel()
            rows.append({"layer": path.stem, "set": pattern, "zeros": pruned, "fw": fw, "wanda": wanda, "unit": unit})
            cells = (f"{value / unit:.4f}" for value in (fw["objective"], fw["bound"], wanda["objective"]))
            print(f"| {pruned:.3f} | {pattern} |", " | ".join(cells), "|", flush=True)
    print(f"\n{time.monotonic() - started:.0f} s", flush=True)
    return rows


def main() -> None:
    """Measure every layer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="+", type=Path, help="safetensors with `weight` and `gram`")
    parser.add_argument("--out", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in arguments.layers:
        rows += table(path)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
