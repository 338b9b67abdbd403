"""What the linear oracle costs beside the matrix product of an iteration, across the layer shapes of real models.

    python docs/benchmarks/oracle_cost.py

Random data: neither the product nor the oracles look at the values, but for the threshold search, which is given what
it has in a solve: the threshold of scores a little different from the present ones. At most --rows rows are measured:
both costs are proportional to them. Shares are oracle / (oracle + product).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import head, line

from relaxprune import NM
from relaxprune.problems.polytopes.threshold import nearly_smallest

MODELS: dict[str, tuple[tuple[str, int, int], ...]] = {  # layer, rows, columns
    "SmolLM2-135M": (("q, o", 576, 576), ("k, v", 192, 576), ("gate, up", 1536, 576), ("down", 576, 1536)),
    "Llama-3-8B": (("q, o", 4096, 4096), ("k, v", 1024, 4096), ("gate, up", 14336, 4096), ("down", 4096, 14336)),
    "Qwen2.5-7B": (("q, o", 3584, 3584), ("k, v", 512, 3584), ("gate, up", 18944, 3584), ("down", 3584, 18944)),
    "Llama-3-70B": (("q, o", 8192, 8192), ("k, v", 1024, 8192), ("gate, up", 28672, 8192), ("down", 8192, 28672)),
}
CHANGE = 0.02  # of the scores' spread, from one iteration to the next


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median time of some calls, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def measured(rows: int, cols: int, device: torch.device, repeats: int) -> tuple[float, ...]:
    """Return the seconds of a product, a selection, a threshold search and the oracle of 2:4, float32."""
    draw = torch.Generator(device).manual_seed(0)
    weight = torch.randn(rows, cols, generator=draw, device=device)
    gram = torch.randn(cols, cols, generator=draw, device=device)
    product = torch.empty_like(weight)
    times = [seconds(lambda: torch.mm(weight, gram, out=product), device, repeats)]
    scores = torch.randn(rows, cols, generator=draw, device=device)
    later = scores + CHANGE * weight
    _, hint = nearly_smallest(scores, cols // 2, None)
    times.append(seconds(lambda: scores.topk(cols // 2, dim=1, largest=False, sorted=False), device, repeats))
    times.append(seconds(lambda: nearly_smallest(later, cols // 2, hint), device, repeats))
    times.append(seconds(lambda: NM(2, 4).lmo(scores), device, repeats))
    return tuple(times)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=256, help="the most rows of a layer that are measured")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, 50 % and 2:4\n")
    columns = ("product, ms", "topk / product", "threshold / product", "2:4 / product")
    head("model", "layer", "rows x cols", "rows measured", *columns, "share of topk", "of threshold", "of 2:4")
    for model in arguments.models:
        for name, rows, cols in MODELS[model]:
            used = min(rows, arguments.rows)
            product, *oracles = measured(used, cols, device, arguments.repeats)
            ratios = [f"{oracle / product:.2f}" for oracle in oracles]
            shares = [f"{oracle / (oracle + product):.0%}" for oracle in oracles]
            line(model, name, f"{rows} x {cols}", used, f"{product * 1e3:.1f}", *ratios, *shares)


if __name__ == "__main__":
    main()
