"""What the objective is made of, measured on text that calibration never sees.

    python docs/benchmarks/gram_statistics.py collect smollm2-135m TEXT FOLDER --layers 15.self_attn.o_proj
    python docs/benchmarks/gram_statistics.py layers FOLDER --rows 64
    python docs/benchmarks/gram_statistics.py model smollm2-135m TEXT --windows 16 --held-out 40

`collect` saves inputs of layers of the dense model, (windows, length, cols), half of them from the text's first two
thirds and half from its end. `layers` chooses masks on Grams of the first N tokens and judges them on the Gram of the
other half. `model` prunes the whole model once per option, and reports perplexity on held-out windows with the standard
error of its paired difference to the first line. The text is a file, or "builtin".
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from layers import polytope
from safetensors.torch import load_file, save_file

from relaxprune import MaskProblem, solve
from relaxprune.evaluation.perplexity import perplexity
from relaxprune.inputs.gram_accumulator import GramAccumulator
from relaxprune.inputs.shrinkage import estimate, shrink
from relaxprune.models.loading import LoadedModel, LoadOptions, load_model
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.pruning.pipeline import prune_model
from relaxprune.text.windows import (
    CalibrationOptions,
    TokenWindows,
    calibration_windows,
    evaluation_windows,
)

HELD_OUT = 1 / 3
SHARES: tuple[float | str, ...] = (0.0, 0.03, 0.1, 0.2, 0.4, "auto", "cross-validated")
SOLVERS: dict[str, dict[str, Any]] = {
    "wanda": {"solver": "wanda"},
    "swap": {"solver": "swap"},
    "fast": {"solver": "fw", "effort": "fast"},
    "default": {"solver": "fw", "effort": "default"},
}
VARIANTS: dict[str, StatisticsOptions] = {
    "block": StatisticsOptions(),
    "groups": StatisticsOptions(collect="groups"),
    "skip 1 token": StatisticsOptions(skip_tokens=1),
    "cap 4": StatisticsOptions(token_cap=4.0),
    "shrinkage 0.05": StatisticsOptions(shrinkage=0.05),
    "shrinkage 0.1": StatisticsOptions(shrinkage=0.1),
    "shrinkage auto": StatisticsOptions(shrinkage="auto"),
    "groups, auto": StatisticsOptions(collect="groups", shrinkage="auto"),
}


def windows(
    loaded: LoadedModel, text: str, count: int, held_out: int, length: int
) -> tuple[TokenWindows, TokenWindows]:
    """Return calibration windows, and windows of the part of the text that they never come from."""
    options = CalibrationOptions(windows=count, length=length, held_out=HELD_OUT)
    calibration = calibration_windows(text, loaded.tokenizer, options)
    held = CalibrationOptions(windows=held_out, length=length, held_out=HELD_OUT)
    return calibration, evaluation_windows(text, loaded.tokenizer, held)


def collect(loaded: LoadedModel, arguments: argparse.Namespace) -> None:
    """Save weight and inputs of some layers of the dense model."""
    parts = windows(loaded, arguments.text, arguments.windows, arguments.windows, arguments.length)
    seen: dict[str, list[torch.Tensor]] = {}
    for name in arguments.layers.split(","):
        module = next(module for full, module in loaded.model.named_modules() if full.endswith(f".{name}"))
        seen[name] = []
        module.register_forward_pre_hook(lambda _module, args, name=name: seen[name].append(args[0].cpu()))
        save_file({"weight": module.weight.detach().clone()}, Path(arguments.folder) / f"{name}.weight.safetensors")
    with torch.no_grad():
        for part in parts:
            for batch in part.tokens.split(4):
                loaded.model(input_ids=batch.to(loaded.model.device), use_cache=False)
    for name, inputs in seen.items():
        save_file({"inputs": torch.cat(inputs)}, Path(arguments.folder) / f"{name}.inputs.safetensors")


def accumulated(inputs: torch.Tensor) -> GramAccumulator:
    """Return the sums of (windows, length, cols) inputs, a batch per window."""
    sums = GramAccumulator(inputs.shape[-1], inputs.device, parts=2)
    for number, window in enumerate(inputs):
        sums.add(window, batch=number, part=number % 2)
    return sums


def relative_error(weight: torch.Tensor, gram: torch.Tensor, mask: torch.Tensor) -> float:
    """Return f(mask) / f(0) in float64."""
    wide, pruned = weight.double(), weight.double().masked_fill(mask, 0.0)
    return float(((pruned @ gram.double()) * pruned).sum() / ((wide @ gram.double()) * wide).sum())


def cross_validated(weight: torch.Tensor, inputs: torch.Tensor, pattern: str) -> float:
    """Return the share that does best from one half of the windows to the other, scaled to all of them.

    The best λ / (1 − λ) goes as the variance of the Gram, one over the number of tokens.
    """
    masks = polytope(pattern, (weight.shape[0], weight.shape[1]))
    grams = [accumulated(half).gram() for half in (inputs[0::2], inputs[1::2])]

    def loss(share: float) -> float:
        total = 0.0
        for own, other in (grams, grams[::-1]):
            problem = MaskProblem(weight, shrink(own.clone(), share), masks)
            total += relative_error(weight, other, solve(problem, **SOLVERS["fast"]).mask)
        return total

    best = min((0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5), key=loss)
    odds = best / (1 - best) / 2
    return odds / (1 + odds)


def layers(arguments: argparse.Namespace) -> None:
    """Print one line per layer, number of tokens, solver and shrinkage: its errors on its own and the held-out Gram."""
    print("| layer | tokens | solver | shrinkage | λ | error, own Gram | error, held out |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for file in sorted(Path(arguments.folder).glob("*.inputs.safetensors")):
        name = file.name.removesuffix(".inputs.safetensors")
        inputs = load_file(file)["inputs"]
        weight = (
            load_file(file.with_name(f"{name}.weight.safetensors"))["weight"][: arguments.rows].float().contiguous()
        )
        own, held = inputs[: len(inputs) // 2], accumulated(inputs[len(inputs) // 2 :]).gram()
        for count in (int(word) for word in arguments.counts.split(",")):
            used = own[: max(2, count // inputs.shape[1])]
            sums = accumulated(used)
            for solver in arguments.solvers.split(","):
                for share in SHARES if solver == "fast" else (0.0, "auto"):
                    if isinstance(share, str):
                        auto = share == "auto"
                        amount = estimate(sums) if auto else cross_validated(weight, used, arguments.pattern)
                    else:
                        amount = share
                    masks = polytope(arguments.pattern, (weight.shape[0], weight.shape[1]))
                    problem = MaskProblem(weight, shrink(sums.gram(), amount), masks)
                    mask = solve(problem, **SOLVERS[solver]).mask
                    errors = [relative_error(weight, gram, mask) for gram in (sums.gram(), held)]
                    print(
                        f"| {name} | {sums.tokens} | {solver} | {share} | {amount:.3f} | {errors[0]:.4f} "
                        f"| {errors[1]:.4f} |",
                        flush=True,
                    )


def model(loaded: LoadedModel, arguments: argparse.Namespace) -> None:
    """Prune once per variant, from the same dense weights, and print perplexities."""
    calibration, held = windows(loaded, arguments.text, arguments.windows, arguments.held_out, arguments.length)
    dense = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    amount: dict[str, Any] = {"pattern": arguments.pattern}
    if arguments.pattern.endswith("%"):
        amount = {"sparsity": float(arguments.pattern[:-1]) / 100}
    effort = {"effort": arguments.effort} if arguments.solver == "fw" else {}
    first: torch.Tensor | None = None
    print("| statistics | perplexity | difference of log-perplexity | mean relative error | mean λ | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in arguments.variants.split(";"):
        loaded.model.load_state_dict(dense)
        options = PruneOptions(max_iterations=arguments.max_iterations, statistics=VARIANTS[name])
        batches = calibration.tokens.split(arguments.batch)
        report = prune_model(loaded.model, batches, solver=arguments.solver, options=options, **amount, **effort)
        result = perplexity(loaded.model, held.tokens)
        losses = torch.tensor(result.window_losses, dtype=torch.float64)
        first = losses if first is None else first
        change = losses - first
        error = float(change.std() / math.sqrt(len(change)))
        share = sum(layer.inputs.shrinkage for layer in report.layers) / len(report.layers)
        print(
            f"| {name} | {result.perplexity:.2f} | {float(change.mean()):+.4f} ± {error:.4f} "
            f"| {report.mean_relative_error:.4f} | {share:.3f} | {report.seconds['total']:.0f} |",
            flush=True,
        )


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("collect", "layers", "model"):
        one = steps.add_parser(step)
        if step != "layers":
            one.add_argument("model")
            one.add_argument("text")
            one.add_argument("--device", default=None)
            one.add_argument("--length", type=int, default=512)
            one.add_argument("--windows", type=int, default=32 if step == "collect" else 16)
        if step != "model":
            one.add_argument("folder")
        if step != "collect":
            one.add_argument("--pattern", default="50%")
    gather, judge, whole = (steps.choices[step] for step in ("collect", "layers", "model"))
    gather.add_argument("--layers", required=True, help="ends of module names, separated by commas")
    judge.add_argument("--rows", type=int, default=64, help="only the first rows of every layer")
    judge.add_argument("--counts", default="2048,8192,16384", help="numbers of calibration tokens")
    judge.add_argument("--solvers", default=",".join(SOLVERS))
    whole.add_argument("--held-out", type=int, default=40, help="windows of held-out text")
    whole.add_argument("--batch", type=int, default=4, help="windows that go through the model at once")
    whole.add_argument("--solver", default="fw")
    whole.add_argument("--effort", default="fast")
    whole.add_argument("--max-iterations", type=int, default=None)
    whole.add_argument("--variants", default=";".join(VARIANTS), help="separated by semicolons")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads", file=sys.stderr)
    if arguments.step == "layers":
        layers(arguments)
        return
    loaded = load_model(arguments.model, LoadOptions(device=arguments.device))
    (collect if arguments.step == "collect" else model)(loaded, arguments)


if __name__ == "__main__":
    main()
