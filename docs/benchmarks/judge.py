"""A table of recipes, each judged by KL from the dense model on several kinds of text.

    python docs/benchmarks/judge.py runs/judge --windows 24 --recipes wanda fw fw+robust --targets 50% 2:4
    python docs/benchmarks/judge.py runs/judge --recipes fw 'fw-0.7=--solver fw --shrinkage 0.7'

A recipe (recipes.py) is words of `relaxprune prune`: a name, with names of EXTRAS added by "+", or NAME=WORDS. The
model and all windows are loaded once; each cell prunes a copy of the dense weights in memory. What is done is in
judge.json, with the means of every window so that differences can be paired, and is not repeated unless its words have
changed; the tables are in judge.md. Texts are read in their held-out parts only: `like` is that of --like, by default
of the calibration text, and `self` is sampled from the dense model with a seed that no calibration has.
"""

from __future__ import annotations

import argparse
import copy
import io
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import FAILURES, head, line, opened
from recipes import RECIPES, Recipe
from torch import Tensor

from relaxprune import CalibrationOptions, PairedDifference, divergence, load_model, perplexity, prune_model
from relaxprune.cli.prune.job import PruneJob
from relaxprune.cli.prune.run import batches, calibration_tokens, refine_batches
from relaxprune.evaluation.divergence import with_error
from relaxprune.models import LoadOptions
from relaxprune.pruning import make_plan
from relaxprune.pruning.block_record import BlockRecord
from relaxprune.support.durable import write_json, write_text
from relaxprune.text import TokenWindows, evaluation_windows
from relaxprune.text.token_windows import tokens_sha256

LIKE = "like"


class Remembered(torch.nn.Module):
    """The dense model, whose logits on a window are computed once as long as they fit."""

    def __init__(self, model: Any, gib: float) -> None:
        """Keep at most ``gib`` GiB of logits."""
        super().__init__()
        self.model, self.config, self.room = model, model.config, gib * 2**30
        self.kept: dict[str, Tensor] = {}

    def get_input_embeddings(self) -> Any:
        """Return the model's own."""
        return self.model.get_input_embeddings()

    def forward(self, input_ids: Tensor, **options: Any) -> SimpleNamespace:
        """Return logits (windows, length, vocabulary)."""
        key = tokens_sha256(input_ids)
        if key not in self.kept:
            logits = self.model(input_ids, **options).logits
            if logits.nbytes > self.room:
                return SimpleNamespace(logits=logits)
            self.kept[key] = logits
            self.room -= logits.nbytes
        return SimpleNamespace(logits=self.kept[key])


class Finished:
    """The blocks of the latest cell, from which the same recipe with a refinement goes on."""

    def __init__(self) -> None:
        """Begin with none."""
        self.of = ""
        self.blocks: dict[int, BlockRecord] = {}

    def for_job(self, job: PruneJob) -> Finished:
        """Forget the blocks of a job that differs in more than its refinement."""
        request = replace(job.request, options=replace(job.request.options, refine=0, refine_rate=None))
        of = repr((job.sources, job.windows, request))
        if of != self.of:
            self.of, self.blocks = of, {}
        return self

    def load(self, block_index: int) -> BlockRecord | None:
        """Return what is kept of a block."""
        return self.blocks.get(block_index)

    def save(self, block_index: int, record: BlockRecord) -> None:
        """Keep a block."""
        self.blocks[block_index] = record


class Bench:
    """The dense model, a copy to prune, and the windows of every text."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Load the model and cut the texts."""
        self.loaded = load_model(arguments.model, LoadOptions(device=arguments.device))
        self.dense: Any = Remembered(copy.deepcopy(self.loaded.model), arguments.remember)
        self.weights = {name: tensor.clone() for name, tensor in self.loaded.model.state_dict().items()}
        self.finished = Finished()
        self.read: dict[Any, Any] = {}
        self.texts: dict[str, Tensor] = {}
        for place, text in enumerate(arguments.texts):
            windows = arguments.held_out[min(place, len(arguments.held_out) - 1)]
            options = CalibrationOptions(windows=windows, length=arguments.length)
            source = (arguments.like or arguments.calibration) if text == LIKE else text
            found = evaluation_windows(source, self.loaded.tokenizer, options, model=self.loaded.model, spread=True)
            self.texts[text] = found.tokens

    def facts(self) -> dict[str, Any]:
        """Return what identifies the windows of each text."""
        return {text: {"windows": len(tokens), "sha256": tokens_sha256(tokens)} for text, tokens in self.texts.items()}

    def windows(self, job: PruneJob) -> tuple[TokenWindows, tuple[Tensor, ...], float]:
        """Return a job's calibration windows, those of its refinement, and the seconds that the model wrote at them.

        They are taken once, from the model as it is now.
        """
        found, seconds = [], 0.0
        for key, take in (
            ((job.sources, job.windows), calibration_tokens),
            ((job.refine_samples, job.windows), refine_batches),
        ):
            if key not in self.read:
                started = time.perf_counter()
                self.read[key] = take(job, self.loaded), time.perf_counter() - started
            found.append(self.read[key][0])
            seconds += self.read[key][1]
        return found[0], found[1], seconds

    def cell(self, job: PruneJob) -> dict[str, Any]:
        """Prune the dense weights and judge the result on every text."""
        self.loaded.model.load_state_dict(self.weights)
        windows, more, writing = self.windows(job)
        plan = make_plan(self.loaded.model, job.request, job.tokens)
        finished = self.finished.for_job(job)
        text = batches(job, windows)
        report = prune_model(self.loaded.model, text, plan=plan, refine_batches=more, recorder=finished)
        return {
            "seconds": writing + report.seconds["total"],
            "stages": {"text": writing, **report.seconds},
            "relative_error": report.mean_relative_error,
            "of_wanda": report.mean_wanda_ratio,
            "calibration_sha256": windows.sha256,
            "texts": self.judged(),
        }

    def judged(self) -> dict[str, Any]:
        """Measure the model as it is on every text."""
        model = self.loaded.model
        return {text: divergence(model, self.dense, tokens).to_dict() for text, tokens in self.texts.items()}

    def perplexities(self) -> dict[str, float]:
        """Measure the dense model on every text."""
        return {text: perplexity(self.dense, tokens).perplexity for text, tokens in self.texts.items()}


def run(
    bench: Bench, jobs: dict[tuple[str, Recipe], PruneJob], results: dict[str, Any], file: Path, deadline: float
) -> None:
    """Fill in the cells that are missing, and write each as soon as it is there; none is begun after the deadline."""
    for (target, recipe), job in jobs.items():
        named = {"target": target, "recipe": recipe.name, "words": list(recipe.words)}
        if any(all(cell[key] == value for key, value in named.items()) for cell in results["cells"]):
            continue
        if time.monotonic() > deadline:
            print(f"out of time before {recipe.name} at {target}: give the command again", file=sys.stderr)
            return
        try:
            cell = {**named, **bench.cell(job)}
        except FAILURES as error:
            cell = {**named, "failed": f"{type(error).__name__}: {error}"}
        place = (target, recipe.name)
        results["cells"] = [old for old in results["cells"] if (old["target"], old["recipe"]) != place] + [cell]
        write_json(file, results)
        said = cell["failed"] if "failed" in cell else f"{cell['seconds']:.0f} s"
        print(f"{recipe.name} at {target}: {said}", file=sys.stderr)


def show(results: dict[str, Any], order: Sequence[tuple[str, str]], plain: str) -> None:
    """Print the two tables in Markdown: every recipe, and its difference from the plain one, window by window."""
    texts = list(results["settings"]["texts"])
    found = {(cell["target"], cell["recipe"]): cell for cell in results["cells"]}
    done = {place: found[place] for place in order if place in found}
    described(results)
    head("target", "recipe", *texts, f"perplexity, {texts[0]}", "error, of Wanda's", f"time, of {plain}")
    for (target, recipe), cell in done.items():
        if "failed" in cell:
            line(target, recipe, f"failed: {cell['failed']}", *[""] * (len(texts) + 2))
            continue
        kept = [cell["texts"][text] for text in texts]
        base = done.get((target, plain), {}).get("seconds")
        times = "" if base is None else f"{cell['seconds'] / base:.2f}"
        shown = [with_error(item["mean"], item["standard_error"]) for item in kept]
        line(target, recipe, *shown, f"{kept[0]['perplexity']['perplexity']:.2f}", f"{cell['of_wanda']:.3f}", times)
    print(f"\nKL less that of {plain}, paired window by window; below 0 is closer to the dense model:\n")
    head("target", "recipe", *texts)
    for (target, recipe), cell in done.items():
        base = done.get((target, plain), {"failed": ""})
        if recipe != plain and not {"failed"} & {*cell, *base}:
            means = [[each["texts"][text]["window_means"] for each in (cell, base)] for text in texts]
            line(target, recipe, *(PairedDifference.of(*pair) for pair in means))


def described(results: dict[str, Any]) -> None:
    """Print what the tables were measured on."""
    settings, dense = results["settings"], results["dense"]
    sizes = ", ".join(f"{facts['windows']} of {text}" for text, facts in settings["texts"].items())
    perplexities = ", ".join(f"{value:.2f} on {text}" for text, value in dense.items())
    print(
        f"{settings['model']}, calibrated on {settings['windows']} windows of {settings['length']} tokens of "
        f"{Path(settings['calibration']).name}; KL from the dense model in nats a token ± standard error over held-out "
        f"windows ({sizes}), {settings['device']}. Perplexity of the dense model: {perplexities}.\n"
    )


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, made or continued")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipes", nargs="+", type=Recipe.of, default=[Recipe.of(name) for name in RECIPES])
    parser.add_argument("--targets", nargs="+", default=["50%", "2:4"])
    parser.add_argument("--calibration", default="builtin", help="as `relaxprune prune` takes it")
    parser.add_argument("--windows", type=int, default=24, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of every window")
    parser.add_argument(
        "--texts", nargs="+", default=[LIKE, "python", "self"], help="like, or sources of held-out text"
    )
    parser.add_argument("--like", default=None, help="source of the text `like`, if --calibration is a mixture")
    parser.add_argument(
        "--held-out", nargs="+", type=int, default=[20, 8], help="windows of each text; the last repeats"
    )
    parser.add_argument("--plain", default="fw", help="the recipe that times and differences are taken from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--remember", type=float, default=4.0, help="GiB for the dense model's logits")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after these, no cell is begun")
    return parser.parse_args()


def main() -> None:
    """Fill in what is missing, write and print the tables."""
    arguments = parsed()
    deadline = time.monotonic() + 60 * arguments.minutes
    jobs = {
        (target, recipe): recipe.job(target, arguments) for target in arguments.targets for recipe in arguments.recipes
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / "judge.json"
    bench = Bench(arguments)
    names = ("model", "calibration", "windows", "length", "device")
    settings = {**{name: getattr(arguments, name) for name in names}, "texts": bench.facts()}
    results = opened(file, settings, "cells")
    if "dense" not in results:
        results["dense"] = bench.perplexities()
    run(bench, jobs, results, file, deadline)
    with redirect_stdout(io.StringIO()) as tables:
        show(results, [(target, recipe.name) for target, recipe in jobs], arguments.plain)
    write_text(arguments.out / "judge.md", tables.getvalue())
    print(tables.getvalue(), end="")


if __name__ == "__main__":
    main()
