"""Every method on one model, as a newcomer would compare them: prune, eval and report, command by command.

    python docs/benchmarks/comparison.py runs/comparison

Each run is a folder below the one given, named after method and target. A page, 50.html or 2of4.html, compares the runs
of each target, and their table is printed in Markdown. Given again, the command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from common import head, line

METHODS: dict[str, tuple[str, ...]] = {
    "wanda": ("--solver", "wanda"),
    "ria": ("--solver", "ria"),
    "sparsefw": ("--solver", "sparsefw", "--option", "alpha=0.75"),
    "fw": ("--solver", "fw"),
    "fw-fast": ("--solver", "fw", "--effort", "fast"),
    "sparsegpt": ("--solver", "sparsegpt"),
    "alps": ("--solver", "alps"),
    "reconstruct": ("--solver", "reconstruct"),
    "reconstruct-fast": ("--solver", "reconstruct", "--effort", "fast"),
}
USUAL = [method for method in METHODS if not method.endswith("-fast")]


def command(*words: str) -> None:
    """Run relaxprune; a run that ends with something to be seen (3) counts.

    Raises:
        SystemExit: it failed.
    """
    beside = Path(sys.executable).with_name("relaxprune")
    program = str(beside) if beside.exists() else shutil.which("relaxprune")
    if program is None:
        raise SystemExit("relaxprune is not installed in this environment")
    print("$ relaxprune", *words, flush=True)
    code = subprocess.run([program, *words], stdin=subprocess.DEVNULL).returncode
    if code not in (0, 3):
        raise SystemExit(f"relaxprune {words[0]} ended with exit code {code}")


def prune(folder: Path, target: str, method: str, arguments: argparse.Namespace) -> None:
    """Prune into a folder, unless it is finished."""
    how_much = ("--sparsity", str(float(target[:-1]) / 100)) if target.endswith("%") else ("--pattern", target)
    text = ("--calibration", arguments.text, "--windows", str(arguments.windows), "--length", str(arguments.length))
    steps = ("--max-iterations", str(arguments.sparsefw_iterations)) if method == "sparsefw" else ()
    command("prune", arguments.model, *how_much, *METHODS[method], *steps, *text, "--out", str(folder), "--resume")


def evaluate(folder: Path, arguments: argparse.Namespace, dense: bool) -> None:
    """Record the perplexity of the pruned model, and that of the dense one, on held-out text; unless it is there."""
    kept = folder / "evaluation.json"
    results = json.loads(kept.read_text(encoding="utf-8"))["results"] if kept.exists() else []
    done = {(item["own"], item["text"]) for item in results}
    # A page compares on the text that came last.
    for text in dict.fromkeys(("builtin", arguments.text)):
        unseen = ("--windows", str(arguments.held_out), "--length", str(arguments.length), "--text", text)
        if dense and (False, text) not in done:
            command("eval", arguments.model, *unseen, "--record", str(folder))
        if (True, text) not in done:
            command("eval", str(folder), *unseen)


def show(page: Path) -> None:
    """Print the table of a page; perplexities are in the order of the texts."""
    runs = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["runs"]
    head("run", "relative error", "of Wanda's", "gap", "perplexity", "pruning, s")
    for name, run in runs.items():
        summary, seen = run["summary"], {"dense": [], name: []}
        for item in run["perplexity"]:
            seen[name if item["own"] else "dense"].append(f"{item['perplexity']:.2f}")
        if seen["dense"]:
            line("dense", "", "", "", " / ".join(seen["dense"]), "")
        numbers = (summary[key] for key in ("mean_relative_error", "mean_wanda_ratio", "mean_relative_gap"))
        line(name, *numbers, " / ".join(seen[name]), f"{summary['seconds']:.0f}")
    print(flush=True)


def tag(target: str) -> str:
    """Return how files call a target."""
    return target.replace("%", "").replace(":", "of")


def main() -> None:
    """Run what is missing, write the pages, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder, made or continued")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--methods", nargs="+", default=USUAL, choices=METHODS)
    parser.add_argument("--targets", nargs="+", default=["50%", "2:4"])
    parser.add_argument("--text", default="builtin", help="calibration text, and the held-out one beside the built-in")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=20, help="held-out windows")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--sparsefw-iterations", type=int, default=2000, help="2000 are published")
    arguments = parser.parse_args()
    for target in arguments.targets:
        folders = [arguments.out / f"{method}-{tag(target)}" for method in arguments.methods]
        for folder, method in zip(folders, arguments.methods, strict=True):
            prune(folder, target, method, arguments)
            evaluate(folder, arguments, dense=folder is folders[0])
        page = arguments.out / f"{tag(target)}.html"
        command("report", *map(str, folders), "--out", str(page))
        show(page)


if __name__ == "__main__":
    main()
