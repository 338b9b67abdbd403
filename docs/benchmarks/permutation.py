"""What another order of the columns is worth to an N:M mask: on single layers, and on a whole model.

    python docs/benchmarks/permutation.py layers --patterns 2:4,4:8 layer.safetensors …
    python docs/benchmarks/permutation.py model smollm2-135m --pattern 2:4 --text text.txt --windows 12 --held-out 48
    python docs/benchmarks/permutation.py model smollm2-135m --blocks 3 --include '*.2.*down_proj' --windows 8

Layer files hold `weight` (rows, cols) and `gram` (cols, cols). Of the text the first three quarters calibrate, and the
last one is for the perplexity. With `--blocks` only the first blocks of the model are there, and no perplexity.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from safetensors.torch import load_file

from relaxprune import NM, MaskProblem, solve
from relaxprune.evaluation.perplexity import perplexity
from relaxprune.models.layer_roles import role_of
from relaxprune.models.loading import load_model
from relaxprune.options.prune_options import PruneOptions
from relaxprune.pruning.channels.channel_order import channel_order, kept_saliency
from relaxprune.pruning.channels.channel_paths import ChannelPath, Orbit
from relaxprune.pruning.channels.error_order import LayerInOrders, OrdersTried
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows


def layer(file: str, pattern: str, rows: int | None) -> None:
    """Print what masks lose in the order of the file, in a random one and in those that are found."""
    tensors = load_file(file)
    weight, gram = tensors["weight"][:rows].float(), tensors["gram"].float()
    masks = NM.from_pattern(pattern)
    scores = weight.square() * gram.diagonal()
    total = float(scores.sum(dtype=torch.float64))
    started = time.perf_counter()
    found = channel_order(scores, masks.keep, masks.group)
    seconds = {"by saliency": time.perf_counter() - started}
    cols = weight.shape[1]
    every = torch.arange(cols)
    started = time.perf_counter()
    tried = OrdersTried.of(LayerInOrders(weight, gram, masks), ChannelPath((), cols, (Orbit(every, every[None]),)), 0)
    seconds["by error"] = time.perf_counter() - started
    shuffled = torch.randperm(cols, generator=torch.Generator().manual_seed(0))
    name = file.rpartition("/")[2].removesuffix(".safetensors")
    orders = {"source": every, "random": shuffled, "by saliency": found, "by error": tried.best.columns()}
    for order, columns in orders.items():
        problem = MaskProblem(weight[:, columns].contiguous(), gram[columns][:, columns].contiguous(), masks)
        kept = kept_saliency(scores[:, columns], masks.keep, masks.group) / total
        errors = (solve(problem, "wanda").relative_error, solve(problem, "fw", effort="fast").relative_error)
        spent = f"{seconds[order]:.1f}" if order in seconds else "-"
        cells = (f"{name} {pattern}", order, f"{kept:.4f}", *(f"{error:.5f}" for error in errors), spent)
        print(f"| {' | '.join(cells)} |", flush=True)


def mean_error(report: PruneReport, role: str) -> float:
    """Return the mean relative error of the layers with one role, NaN where there are none."""
    errors = [item.relative_error for item in report.layers if role_of(item.name) == role]
    return sum(errors) / len(errors) if errors else math.nan


def model(arguments: argparse.Namespace) -> None:
    """Print what pruning a model loses, in the order of the source and with channels reordered."""
    loaded = load_model(arguments.model)
    taken = CalibrationOptions(arguments.windows, arguments.length)
    windows = calibration_windows(arguments.text, loaded.tokenizer, taken, model=loaded.model)
    if arguments.blocks is not None:
        loaded.model.model.layers = loaded.model.model.layers[: arguments.blocks]
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}

    def held_out() -> str:
        if arguments.blocks is not None:
            return "-"
        evaluated = CalibrationOptions(arguments.held_out, arguments.length)
        found = evaluation_windows(arguments.text, loaded.tokenizer, evaluated)
        return f"{perplexity(loaded.model, found.tokens).perplexity:.2f}"

    print(f"| dense | - | - | - | - | - | {held_out()} | - |", flush=True)
    for solver in arguments.solvers.split(","):
        for order in arguments.orders.split(","):
            loaded.model.load_state_dict(dense)
            by = {} if order == "source" else {"permute": True, "permute_by": order}
            report = prune_model(
                loaded.model,
                windows.tokens.split(4),
                pattern=arguments.pattern,
                solver=solver,
                options=PruneOptions(
                    **by, include=tuple(arguments.include), weights="refit" if solver == "reconstruct" else None
                ),
                **({"effort": "fast"} if solver in ("fw", "reconstruct") else {}),
            )
            applied = sum(item.applied for item in report.permutations)
            errors = (report.mean_relative_error, *(mean_error(report, role) for role in ("down_proj", "o_proj")))
            seconds = f"{report.seconds.get('permute', 0.0):.0f} and {report.seconds['solve']:.0f}"
            cells = (solver, order, applied, *(f"{error:.5f}" for error in errors), held_out(), seconds)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    single = commands.add_parser("layers")
    single.add_argument("files", nargs="+")
    single.add_argument("--patterns", default="2:4,4:8")
    single.add_argument("--rows", type=int, default=None, help="only the first rows of every layer")
    whole = commands.add_parser("model")
    whole.add_argument("model")
    whole.add_argument("--pattern", default="2:4")
    whole.add_argument("--solvers", default="fw,wanda")
    whole.add_argument("--orders", default="source,saliency,error")
    whole.add_argument("--include", nargs="*", default=(), help="only layers whose names match")
    whole.add_argument("--blocks", type=int, default=None, help="only the first blocks of the model")
    whole.add_argument("--text", default="builtin")
    whole.add_argument("--windows", type=int, default=12)
    whole.add_argument("--held-out", type=int, default=48)
    whole.add_argument("--length", type=int, default=512)
    arguments = parser.parse_args()
    if arguments.command == "model":
        print(
            "| masks | order | reordered | mean relative error | of down_proj | of o_proj | perplexity "
            "| seconds to reorder and to solve |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        model(arguments)
        return
    print("| layer | order of columns | kept saliency | Wanda | fw fast | seconds to find it |")
    print("| --- | --- | --- | --- | --- | --- |")
    for file in arguments.files:
        for pattern in arguments.patterns.split(","):
            layer(file, pattern, arguments.rows)


if __name__ == "__main__":
    main()
