"""A model pruned by every allocation of the same sparsity: mean relative error and held-out perplexity.

    python docs/benchmarks/allocation.py smollm2-135m --text wikitext2-valid.txt --sparsities 0.5,0.6

Calibration windows come from the first three quarters of the text, evaluation windows from the rest. The model is
loaded once, and every run starts from its dense weights.
"""

from __future__ import annotations

import argparse
import time

import torch

from relaxprune.evaluation.perplexity import perplexity
from relaxprune.models.loading import load_model
from relaxprune.options.allocation import ALLOCATIONS
from relaxprune.options.prune_options import PruneOptions
from relaxprune.pruning.pipeline import prune_model
from relaxprune.pruning.prune_report import PruneReport
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows

BATCH = 4  # windows that go through the model at once


def extremes(report: PruneReport) -> str:
    """Return the layers that are pruned least and most."""
    ordered = sorted(report.layers, key=lambda layer: layer.sparsity)
    shown = (f"{layer.name.removeprefix('model.layers.')} {layer.sparsity:.2f}" for layer in (ordered[0], ordered[-1]))
    return ", ".join(shown)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", default="builtin", help="as --calibration of relaxprune prune")
    parser.add_argument("--sparsities", default="0.5,0.6")
    parser.add_argument("--allocations", default=",".join(ALLOCATIONS))
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--solver", default="fw")
    parser.add_argument("--effort", default="fast", help="of fw")
    parser.add_argument("--max-iterations", type=int, default=None)
    given = parser.parse_args()
    loaded = load_model(given.model)
    model = loaded.model
    windows = calibration_windows(given.text, loaded.tokenizer, CalibrationOptions(given.windows, given.length))
    held_out = evaluation_windows(given.text, loaded.tokenizer, CalibrationOptions(given.held_out, given.length))
    dense = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    options = PruneOptions(max_iterations=given.max_iterations)
    more = {"effort": given.effort} if given.solver == "fw" else {}
    print(f"calibration {windows}; held out {held_out}; {torch.get_num_threads()} threads")
    print(f"dense: perplexity {perplexity(model, held_out.tokens).perplexity:.2f}\n")
    print("| sparsity | allocation | pruned | mean relative error | perplexity | least and most pruned | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for sparsity in map(float, given.sparsities.split(",")):
        for allocation in given.allocations.split(","):
            model.load_state_dict(dense)
            started = time.perf_counter()
            batches = windows.tokens.split(BATCH)
            report = prune_model(
                model, batches, sparsity=sparsity, allocation=allocation, solver=given.solver, options=options, **more
            )
            seconds = time.perf_counter() - started
            after = perplexity(model, held_out.tokens).perplexity
            print(
                f"| {sparsity:.0%} | {allocation} | {report.sparsity:.4f} | {report.mean_relative_error:.4f} "
                f"| {after:.2f} | {extremes(report)} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
