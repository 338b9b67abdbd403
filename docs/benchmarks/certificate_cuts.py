"""Every bound against the proven optimum, on cuts of real layers: rows and columns drawn, Grams of these columns.

    python docs/benchmarks/certificate_cuts.py 15.v.safetensors 15.o.safetensors

Optima are found by `enumerate`, which looks at all masks. One line per layer and kind of mask: the cuts, the bounds
above their optimum (there must be none), and the median share of the optimum that each method proves.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from safetensors.torch import load_file

from relaxprune import NM, KSparse, MaskProblem, Status, TransposableNM, certify, solve
from relaxprune.problems import Polytope

METHODS = ("fw", "diagonal", "sdp", "exact")
ROWS = 8
SETS: dict[str, tuple[int, Polytope]] = {  # columns, and the masks
    "50 %": (16, KSparse(8)),
    "75 %": (16, KSparse(4)),
    "at most 50 %": (16, KSparse(8, at_most=True)),
    "2:4": (16, NM(2, 4)),
    "4:8": (16, NM(4, 8)),
    "transposable 2:4": (8, TransposableNM(2, 4)),
}


def cut(tensors: dict[str, torch.Tensor], cols: int, polytope: Polytope, draw: torch.Generator) -> MaskProblem:
    """Return the problem of ROWS rows and ``cols`` columns of a layer, drawn, or neighbours, or the most correlated."""
    weight, gram = tensors["weight"], tensors["gram"]
    rows = torch.randperm(weight.shape[0], generator=draw)[:ROWS]
    kind = int(torch.randint(3, (1,), generator=draw))
    if kind == 0:
        columns = torch.randperm(weight.shape[1], generator=draw)[:cols]
    else:
        first = int(torch.randint(weight.shape[1] - cols, (1,), generator=draw))
        scale = gram.diagonal().rsqrt()
        alike = (gram[first] * scale).abs().topk(cols).indices
        columns = torch.arange(first, first + cols) if kind == 1 else alike
    return MaskProblem(weight[rows][:, columns].contiguous(), gram[columns][:, columns].contiguous(), polytope)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--cuts", type=int, default=25, help="of each layer, for each kind of mask")
    arguments = parser.parse_args()
    print("| layer | masks | cuts | bounds above the optimum | fw | diagonal | sdp | exact |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for file in arguments.files:
        tensors, draw = load_file(file), torch.Generator().manual_seed(0)
        for name, (cols, polytope) in SETS.items():
            above, shares = 0, []
            for _ in range(arguments.cuts):
                problem = cut(tensors, cols, polytope, draw)
                best = solve(problem, "enumerate")
                assert best.status is Status.OPTIMAL
                bounds = [certify(problem, solve(problem), method).lower_bound for method in METHODS]
                above += sum(bound > best.objective * (1 + 1e-12) for bound in bounds)
                shares.append([bound / best.objective for bound in bounds])
            medians = " | ".join(f"{share:.4f}" for share in np.median(shares, axis=0))
            short = file.rpartition("/")[2].removesuffix(".safetensors")
            print(f"| {short} | {name} | {arguments.cuts} | {above} | {medians} |", flush=True)


if __name__ == "__main__":
    main()
