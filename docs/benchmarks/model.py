"""A whole model by several methods, on one calibration: mean relative error, held-out perplexity, seconds.

    python docs/benchmarks/model.py runs/model.json --targets 50% --methods wanda fw
    python docs/benchmarks/model.py runs/model.json --show

Each run prunes a fresh copy of the dense weights through `prune_model`, and is written to the JSON file as soon as it
is there; a run that is in the file is not repeated, so that the command can be stopped and given again, or with more
methods. What fails stays in the table. Two times to compare with are measured on a few windows and scaled by the
windows: collecting the statistics of 128 windows of 2048 tokens and of 512.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from common import FAILURES, head, line, model_grams, opened

from relaxprune import load_model, perplexity, plan_model, prune_model
from relaxprune.models.loading import LoadOptions
from relaxprune.options.prune_options import PruneOptions
from relaxprune.options.statistics_options import StatisticsOptions
from relaxprune.support.durable import write_json
from relaxprune.text.windows import CalibrationOptions, calibration_windows, evaluation_windows

MOVING = PruneOptions(weights="refit")
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"solver": "magnitude"},
    "wanda": {"solver": "wanda"},
    "ria": {"solver": "ria"},
    "sparsefw 0.25": {"solver": "sparsefw", "alpha": 0.25},
    "sparsefw 0.5": {"solver": "sparsefw", "alpha": 0.5},
    "sparsefw 0.75": {"solver": "sparsefw", "alpha": 0.75},
    "sparsefw 0.9": {"solver": "sparsefw", "alpha": 0.9},
    "admm": {"solver": "admm"},
    "swap": {"solver": "swap"},
    "fw fast": {"solver": "fw", "effort": "fast"},
    "fw": {"solver": "fw"},
    "fw best": {"solver": "fw", "effort": "best"},
    "fw shrunk": {"solver": "fw", "options": PruneOptions(statistics=StatisticsOptions(shrinkage="auto"))},
    "fw groups": {"solver": "fw", "options": PruneOptions(statistics=StatisticsOptions(collect="groups"))},
    "fw skip 1": {"solver": "fw", "options": PruneOptions(statistics=StatisticsOptions(skip_tokens=1))},
    "fw cap 4": {"solver": "fw", "options": PruneOptions(statistics=StatisticsOptions(token_cap=4.0))},
    "fw permuted": {"solver": "fw", "options": PruneOptions(permute=True)},
    "wanda refitted": {"solver": "wanda", "options": MOVING},
    "fw refitted": {"solver": "fw", "options": MOVING},
    "sparsegpt": {"solver": "sparsegpt"},
    "alps": {"solver": "alps"},
    "reconstruct fast": {"solver": "reconstruct", "effort": "fast"},
    "reconstruct": {"solver": "reconstruct"},
    "reconstruct best": {"solver": "reconstruct", "effort": "best"},
}
USUAL = ("magnitude", "wanda", "ria", *(f"sparsefw {alpha}" for alpha in (0.25, 0.5, 0.75, 0.9)), "admm", "swap")
SPARSEFW = 2000  # its published iterations
CUSTOMARY = ((128, 2048), (128, 512))  # windows and tokens whose statistics solving is compared with
TARGETS = ("50%", "60%", "2:4")


def target(text: str) -> dict[str, Any]:
    """Return the argument of ``prune_model`` that asks for "50%" or "2:4"."""
    return {"sparsity": float(text[:-1]) / 100} if text.endswith("%") else {"pattern": text}


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all runs of one file have in common."""
    names = ("model", "device", "calibration", "windows", "length", "evaluate")
    names = (*names, "evaluation_windows", "evaluation_length")
    return {**{name: getattr(arguments, name) for name in names}, "threads": torch.get_num_threads()}


def save(file: Path, results: dict[str, Any]) -> None:
    """Write the results in one go."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, results)


class Bench:
    """A loaded model, its dense weights, and the token windows of all runs."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Load the model and cut the texts."""
        self.loaded = load_model(arguments.model, LoadOptions(device=arguments.device))
        self.sparsefw_iterations: int = arguments.sparsefw_iterations
        self.dense = {name: tensor.clone() for name, tensor in self.loaded.model.state_dict().items()}
        calibration = CalibrationOptions(windows=arguments.windows, length=arguments.length)
        self.tokens = calibration_windows(
            arguments.calibration, self.loaded.tokenizer, calibration, model=self.loaded.model
        ).tokens
        unseen = CalibrationOptions(windows=arguments.evaluation_windows, length=arguments.evaluation_length)
        self.unseen = {
            Path(source).stem: evaluation_windows(source, self.loaded.tokenizer, unseen).tokens
            for source in arguments.evaluate
        }

    def perplexities(self) -> dict[str, float]:
        """Measure the model as it is, on every held-out text."""
        return {name: perplexity(self.loaded.model, tokens).perplexity for name, tokens in self.unseen.items()}

    def label(self, method: str) -> str:
        """Return how the table calls a method: SparseFW with other iterations than published says so."""
        published = self.sparsefw_iterations == SPARSEFW or METHODS[method]["solver"] != "sparsefw"
        return method if published else f"{method}, T = {self.sparsefw_iterations}"

    def run(self, method: str, amount: str) -> dict[str, Any]:
        """Prune a fresh copy and measure it."""
        self.loaded.model.load_state_dict(self.dense)
        head_of_run = {"method": self.label(method), "target": amount}
        options = dict(METHODS[method])
        if options["solver"] == "sparsefw":
            options["options"] = PruneOptions(max_iterations=self.sparsefw_iterations)
        try:
            report = prune_model(self.loaded.model, list(self.tokens.split(1)), **target(amount), **options)
            unseen = self.perplexities()
        except FAILURES as error:
            return {**head_of_run, "failed": f"{type(error).__name__}: {error}"}
        return {
            **head_of_run,
            "relative_error": report.mean_relative_error,
            "of_wanda": report.mean_wanda_ratio,
            "perplexity": unseen,
            # Solver and polish alone; the stage "solve" also prepares Grams, judges and proves, Wanda's mask included.
            "solve_seconds": sum(layer.cost.seconds for layer in report.layers),
            "products": sum(layer.cost.products for layer in report.layers) / len(report.layers),
            "seconds": report.seconds,
            "failed_layers": [
                layer.name for layer in report.layers if layer.cost.status in ("NOT_FINITE", "BACKEND_FAILED")
            ],
        }

    def statistics_seconds(self, sample: int) -> dict[str, float]:
        """Return how long the statistics of the customary windows take: what a window adds, times the windows.

        Random tokens, ``sample`` windows against three times as many; what does not grow with the windows counts once.
        """
        self.loaded.model.load_state_dict(self.dense)
        found = {}
        for windows, length in CUSTOMARY:
            few, many = (self.collecting(count, length) for count in (sample, 3 * sample))
            found[f"{windows} x {length}"] = many + (windows - 3 * sample) * max(many - few, 0.0) / (2 * sample)
        return found

    def collecting(self, windows: int, length: int) -> float:
        """Return the seconds of gathering every Gram of the dense model from some windows, one after the other."""
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.loaded.model.config.vocab_size, (windows, length), generator=draw)
        names = [layer.name for layer in plan_model(self.loaded.model, sparsity=0.5).layers]
        started = time.perf_counter()
        model_grams(self.loaded.model, tokens, names)
        return time.perf_counter() - started


def show(results: dict[str, Any]) -> None:
    """Print the table of a file in Markdown."""
    common = results["settings"]
    texts = [Path(source).stem for source in common["evaluate"]]
    print(
        f"{common['model']}, {common['windows']} windows of {common['length']} tokens of "
        f"{Path(common['calibration']).stem}; perplexity on {common['evaluation_windows']} windows of "
        f"{common['evaluation_length']}; {common['threads']} threads.\n"
    )
    for name, seconds in results.get("statistics_seconds", {}).items():
        print(f"Statistics of {name} tokens, scaled from a sample: {seconds:.0f} s.\n")
    costs = ("products", "solving, s", "with judging, s")
    columns = ("relative error", "of Wanda's", *(f"perplexity, {text}" for text in texts), *costs)
    head("target", "method", *columns)
    for run in results["runs"]:
        if "failed" in run:
            line(run["target"], run["method"], f"failed: {run['failed']}", *[""] * (len(columns) - 1))
            continue
        shown = [f"{run['perplexity'][text]:.2f}" for text in texts]
        if run["method"] == "dense":
            line("-", "dense", "", "", *shown, "", "", "")
            continue
        numbers = (run["relative_error"], run["of_wanda"])
        broken = f" ({len(run['failed_layers'])} layers failed)" if run["failed_layers"] else ""
        cost = (f"{run['products']:.0f}", f"{run['solve_seconds']:.0f}", f"{run['seconds']['solve']:.0f}")
        line(run["target"], run["method"] + broken, *numbers, *shown, *cost)


def main() -> None:
    """Run what is missing in the file, then print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a JSON file, made or continued")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", default=[*USUAL, "fw fast", "fw"], choices=METHODS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--calibration", default="builtin", help="builtin, a text file, c4, wikitext2 or self")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--evaluate", nargs="+", default=["builtin"], help="texts whose held-out parts are read")
    parser.add_argument("--evaluation-windows", type=int, default=20)
    parser.add_argument("--evaluation-length", type=int, default=512)
    parser.add_argument("--sparsefw-iterations", type=int, default=SPARSEFW)
    parser.add_argument("--sample", type=int, default=1, help="windows to time statistics on; 0 for no timing")
    parser.add_argument("--show", action="store_true", help="print the table of the file, run nothing")
    arguments = parser.parse_args()
    if arguments.show:
        show(json.loads(arguments.results.read_text(encoding="utf-8")))
        return
    results = opened(arguments.results, settings(arguments), "runs")
    bench = Bench(arguments)
    if arguments.sample and "statistics_seconds" not in results:
        results["statistics_seconds"] = bench.statistics_seconds(arguments.sample)
        save(arguments.results, results)
    done = {(run["method"], run["target"]) for run in results["runs"]}
    if ("dense", "-") not in done:
        bench.loaded.model.load_state_dict(bench.dense)
        results["runs"].append({"method": "dense", "target": "-", "perplexity": bench.perplexities()})
    save(arguments.results, results)
    for amount in arguments.targets:
        for method in arguments.methods:
            if (bench.label(method), amount) not in done:
                started = time.perf_counter()
                results["runs"].append(bench.run(method, amount))
                save(arguments.results, results)
                print(f"{method} {amount}: {time.perf_counter() - started:.0f} s", flush=True)
    print()
    show(results)


if __name__ == "__main__":
    main()
