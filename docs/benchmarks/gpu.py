"""What relaxprune costs on an accelerator: iterations, oracles, whole solves, a descent, waits, certificates, a block.

    python docs/benchmarks/gpu.py --out gpu.json 15.v.safetensors 15.down.safetensors
    python docs/benchmarks/gpu.py --sections block --minutes 8 --out block.json

Each file holds `weight` (rows, cols) and `gram` (cols, cols); without files the whole solves are on random layers with
correlated inputs. Every section is guarded: what fails says so in its table, and the others still run. Times are the
median of repeats, with the device waited for; objectives are computed here, in float64. `--quick` takes small shapes,
and runs on a CPU in a minute. After `--minutes` no section is begun, and in a block no layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from common import label, objective
from gpu_block import QUICK, BlockShape, block
from safetensors.torch import load_file

from relaxprune import NM, KSparse, MaskProblem, RelaxPruneError, certify, solve
from relaxprune.problems import Polytope
from relaxprune.problems.lowered import PRECISIONS
from relaxprune.problems.polytopes.threshold import search
from relaxprune.solvers import Budget, Run
from relaxprune.solvers.exchange.engine.gains import ExchangeState
from relaxprune.solvers.exchange.engine.pair_search import pool_search
from relaxprune.solvers.frank_wolfe.fw import FrankWolfe

ITERATION_SHAPES = ((576, 576), (576, 1536), (2048, 2048), (4096, 4096), (14336, 4096), (4096, 14336), (8192, 8192))
SOLVE_SHAPES = ((4096, 4096), (4096, 14336))
QUICK_SHAPES = ((64, 96), (96, 64))
METHODS: tuple[dict[str, Any], ...] = (
    {"solver": "wanda"},
    {"solver": "fw", "effort": "fast"},
    {"solver": "fw"},
    {"solver": "fw", "precision": "tf32"},
    {"solver": "fw", "precision": "bf16"},
    {"solver": "fw", "effort": "best"},
    {"solver": "sparsefw", "alpha": 0.75},
    {"solver": "swap"},
    {"solver": "admm"},
)
SECTIONS = ("iterations", "solves", "descent", "waits", "proofs", "block")
LARGE = 4096 * 4096  # entries from which only a few methods are run


class Bench:
    """A device, how to wait for it, and the tables made so far."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def wait(self) -> None:
        """Let the device finish."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def seconds(self, work: Callable[[], object], inner: int = 1, repeats: int | None = None) -> float:
        """Return the median seconds of one call, after one call that does not count."""
        work()
        taken = []
        for _ in range(repeats or self.repeats):
            self.wait()
            started = time.perf_counter()
            for _ in range(inner):
                work()
            self.wait()
            taken.append((time.perf_counter() - started) / inner)
        return statistics.median(taken)

    def row(self, table: str, **values: Any) -> None:
        """Print a line of a table as it comes."""
        first = table not in self.tables
        self.tables.setdefault(table, []).append(values)
        if first:
            print(f"\n{table}\n\n| {' | '.join(values)} |\n|{' --- |' * len(values)}")
        shown = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values.values())
        print(f"| {' | '.join(shown)} |", flush=True)

    @contextlib.contextmanager
    def guarded(self, table: str, where: str) -> Iterator[None]:
        """Put a failure into the table, and go on."""
        try:
            yield
        except (RuntimeError, RelaxPruneError, FloatingPointError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            print(f"| {where} | failed: {type(error).__name__}: {first} |", flush=True)
            self.tables.setdefault(table, []).append({"where": where, "failed": str(error)})
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def layer(self, rows: int, cols: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a random weight and the Gram of correlated inputs whose scales differ."""
        generator = torch.Generator(self.device).manual_seed(rows + cols)
        normal = {"generator": generator, "device": self.device}
        mix = torch.randn(cols, max(8, cols // 16), **normal)  # type: ignore[call-overload]
        scale = torch.exp(0.7 * torch.randn(cols, **normal))  # type: ignore[call-overload]
        gram = (mix @ mix.T / mix.shape[1] + torch.eye(cols, device=self.device)) * scale * scale.unsqueeze(1)
        return torch.randn(rows, cols, **normal), (gram + gram.T) / 2  # type: ignore[call-overload]


def iterations(bench: Bench, shapes: tuple[tuple[int, int], ...]) -> None:
    """One step of fw, and its oracle, against one product of the same shape, in the same dtype and precision."""
    table = "one iteration of fw"
    for rows, cols in shapes:
        for precision in PRECISIONS:
            with bench.guarded(table, f"{rows} x {cols}"):
                bench.row(
                    table, shape=f"{rows} x {cols}", precision=precision, **iteration(bench, rows, cols, precision)
                )


def iteration(bench: Bench, rows: int, cols: int, precision: str) -> dict[str, float]:
    """Measure one shape, on iterations early in an annealing: the last tenth of one is in full precision."""
    weight, gram = bench.layer(rows, cols)
    problem = MaskProblem(weight, gram, KSparse(cols // 2))
    solver = FrankWolfe(effort="fast", convex_share=0.02, precision=precision)
    solver.check_device(bench.device)
    working, start = solver.working(problem), problem.polytope.round(problem.score("wanda"))
    state = solver.init(working, start.float(), Budget.of(solver, Run(start=start, max_iterations=1000)))
    product = bench.seconds(lambda: working.multiplied(weight), inner=10)
    for _ in range(40):  # into the annealing phase
        solver.step(working, state)
    step = bench.seconds(lambda: solver.step(working, state), inner=20)
    scores = state.smooth.clone()
    _, hint = search(scores, cols // 2, None)
    topk = bench.seconds(lambda: scores.topk(cols // 2, dim=1, sorted=False), inner=5)
    searched = bench.seconds(lambda: search(scores, cols // 2, hint), inner=5)
    return {
        "product_ms": 1e3 * product,
        "iteration_over_product": step / product,
        "topk_over_product": topk / product,
        "search_over_product": searched / product,
    }


def solves(bench: Bench, name: str, weight: torch.Tensor, gram: torch.Tensor, masks: Polytope) -> None:
    """Whole solves: seconds, objective over Wanda's, peak memory."""
    table = f"whole solves, {name}"
    wanda = objective(weight, gram, solve(MaskProblem(weight, gram, masks), "wanda").mask)
    for options in METHODS:
        if weight.numel() >= LARGE and (options["solver"] == "admm" or options.get("effort") == "best"):
            continue
        if weight.numel() > LARGE and options["solver"] == "sparsefw":
            continue
        with bench.guarded(table, label(options)):
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            bench.wait()
            started = time.perf_counter()
            solution = solve(MaskProblem(weight, gram, masks), **options)
            bench.wait()
            seconds = time.perf_counter() - started
            peak = torch.cuda.max_memory_allocated() - before if bench.device.type == "cuda" else 0
            bench.row(
                table,
                method=label(options),
                seconds=seconds,
                over_wanda=objective(weight, gram, solution.mask) / wanda,
                products=solution.stats.products,
                peak_MiB=peak / 2**20,
                ended=solution.status.name,
            )


def descent(bench: Bench, shape: tuple[int, int]) -> None:
    """A round of the 1-swap descent against a copy of what it must read: half gradients and Gram rows."""
    table = "one round of swap"
    with bench.guarded(table, str(shape)):
        weight, gram = bench.layer(*shape)
        problem = MaskProblem(weight, gram, KSparse(shape[1] // 2))
        state = ExchangeState(problem.working(torch.float64), problem.polytope.round(problem.score("wanda")))

        def round_() -> int:
            moves = pool_search(state, state.everything)
            state.apply(state.everything, moves)
            return moves.count()

        round_()
        swaps = round_() / shape[0]
        seconds = bench.seconds(round_, repeats=3)
        lines = int(1 + 2 * swaps) * shape[0]
        source = torch.zeros(lines, shape[1], dtype=torch.float64, device=bench.device)
        target = torch.empty_like(source)
        copy = bench.seconds(lambda: target.copy_(source))
        bench.row(table, shape=f"{shape[0]} x {shape[1]}", round_ms=1e3 * seconds, over_copy=seconds / copy)


def waits(bench: Bench, shape: tuple[int, int]) -> None:
    """How often the host waits for the device in the annealing, per iteration."""
    table = "waits for the device"
    if bench.device.type != "cuda":
        print("\nwaits for the device: counted on CUDA only")
        return
    with bench.guarded(table, str(shape)):
        weight, gram = bench.layer(*shape)
        for iterations_ in (80, 160):
            problem = MaskProblem(weight, gram, KSparse(shape[1] // 2))
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                solve(problem, effort="fast", max_iterations=iterations_)
            torch.cuda.set_sync_debug_mode("default")
            count = sum("synchroniz" in str(item.message) for item in caught)
            bench.row(
                table, iterations=iterations_, waits=count, of_a_whole_solve="start, judging and descent included"
            )


def proofs(bench: Bench, shape: tuple[int, int]) -> None:
    """Seconds of certificates."""
    table = "certificates"
    weight, gram = bench.layer(*shape)
    problem = MaskProblem(weight, gram, KSparse(shape[1] // 2))
    mask = solve(problem, effort="fast").mask
    for method in ("fw", "diagonal"):
        with bench.guarded(table, method):
            started = time.perf_counter()
            certificate = certify(MaskProblem(weight, gram, KSparse(shape[1] // 2)), mask, method=method)
            bench.wait()
            bench.row(
                table,
                method=method,
                shape=f"{shape[0]} x {shape[1]}",
                seconds=time.perf_counter() - started,
                relative_gap=certificate.relative_gap,
            )


def layers(bench: Bench, files: Sequence[str], quick: bool) -> None:
    """Whole solves of layers from files, and of random ones; of the first one also 2:4."""
    shapes = QUICK_SHAPES if quick else SOLVE_SHAPES
    found = [(f"random {rows} x {cols}", *bench.layer(rows, cols)) for rows, cols in shapes]
    for file in files:
        tensors = load_file(file, device=str(bench.device))
        found.insert(0, (file.rpartition("/")[2].removesuffix(".safetensors"), tensors["weight"], tensors["gram"]))
    for title, weight, gram in found:
        solves(bench, f"{title}, 50 %", weight, gram, KSparse(weight.shape[1] // 2))
    title, weight, gram = found[0]
    solves(bench, f"{title}, 2:4", weight, gram, NM(2, 4))


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--device", default=None, help="an accelerator where there is one, else the CPU")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="names with commas between them; all by default")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more is begun")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=None, help="file for the numbers, as JSON")
    arguments = parser.parse_args()
    found = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(arguments.device or ("cpu" if found is None else found.type))
    bench, deadline = Bench(device, arguments.repeats), time.monotonic() + 60 * arguments.minutes
    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads of the host")
    quick = arguments.quick
    small = QUICK_SHAPES[0] if quick else (4096, 4096)
    works: dict[str, Callable[[], None]] = {
        "iterations": lambda: iterations(bench, QUICK_SHAPES if quick else ITERATION_SHAPES),
        "solves": lambda: layers(bench, arguments.files, quick),
        "descent": lambda: descent(bench, small),
        "waits": lambda: waits(bench, small),
        "proofs": lambda: proofs(bench, small),
        "block": lambda: block(bench, QUICK if quick else BlockShape(), deadline),
    }
    for section in arguments.sections.split(","):
        if time.monotonic() < deadline:
            works[section]()
        if arguments.out is not None:  # after each: a machine that is lent may be taken back
            with open(arguments.out, "w", encoding="utf-8") as file:
                json.dump({"device": name, "torch": torch.__version__, "tables": bench.tables}, file, indent=1)


if __name__ == "__main__":
    main()
