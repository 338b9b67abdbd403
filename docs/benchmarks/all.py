"""Run the benchmarks and put what they print into the pages.

    python docs/benchmarks/all.py [--only NAME …] [--layers FOLDER] [--quick]

A benchmark is a command that prints Markdown. Its output replaces what a page has between `<!-- results: NAME -->` and
`<!-- end of results -->`; pictures go beside the pages. Layers are collected first (collect.py) where the folder has
none. With --quick every command runs on little data and no page changes: it shows that all of them work.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAYERS = "LAYERS"  # stands for the files of collect.py


@dataclass(frozen=True)
class Benchmark:
    """A command of this folder.

    Attributes:
        command: the script and its arguments; "{plots}" is the folder of the pictures.
        quick: arguments that make it short, after the others: the last one given counts.
    """

    command: tuple[str, ...]
    quick: tuple[str, ...] = ()


BENCHMARKS = {
    "greedy": Benchmark(
        ("greedy.py", LAYERS, "--cols", "256", "--plot", "{plots}/greedy.png"),
        ("--rows", "2", "--cols", "32", "--most", "5"),
    ),
    "oracle-cost": Benchmark(("oracle_cost.py",), ("--models", "SmolLM2-135M", "--rows", "8", "--repeats", "1")),
    "fixed-share": Benchmark(
        ("fixed_share.py", LAYERS, "--rows", "32", "--plot", "{plots}/fixed_share.png"),
        ("--rows", "2", "--iterations", "5", "--patterns", "2:4"),
    ),
    "weights": Benchmark(
        ("weights.py", LAYERS, "--rows", "64", "--patterns", "50%,60%,50% of all,2:4"),
        ("--rows", "4", "--patterns", "2:4"),
    ),
    "domains": Benchmark(
        ("domains.py", "--plot", "{plots}/domains.png"),
        ("--blocks", "0", "--rows", "2", "--windows", "1", "2", "--unseen", "1", "--length", "32"),
    ),
    "unseen-text": Benchmark(
        ("unseen_text.py", "--blocks", "15", "--rows", "32", "--windows", "24", "--plot", "{plots}/unseen_text.png"),
        ("--blocks", "0", "--rows", "2", "--windows", "3", "--unseen", "1", "--length", "32", "--shares", "0", "0.2"),
    ),
    "judge": Benchmark(
        ("judge.py", "{plots}/judge", "--recipes", "wanda", "fw", "fw+robust"),
        ("--recipes", "wanda", "--targets", "50%", "--windows", "1", "--length", "32", "--held-out", "1"),
    ),
    "model": Benchmark(
        ("model.py", "{plots}/model.json"),
        ("--methods", "wanda", "--targets", "50%", "--windows", "1", "--length", "32", "--evaluation-windows", "1"),
    ),
}


def arguments_of(name: str, layers: list[str], plots: Path, quick: bool) -> list[str]:
    """Return the whole command of a benchmark."""
    benchmark = BENCHMARKS[name]
    words: list[str] = []
    for word in (*benchmark.command, *(benchmark.quick if quick else ())):
        words += layers if word == LAYERS else [word.replace("{plots}", str(plots))]
    return [sys.executable, str(HERE / words[0]), *words[1:]]


def replaced(page: str, name: str, output: str) -> str:
    """Return a page with the results of one benchmark in the place of the earlier ones; unchanged without a place."""
    place = re.compile(rf"(<!-- results: {re.escape(name)} -->\n).*?(<!-- end of results -->)", re.DOTALL)
    return place.sub(lambda found: f"{found[1]}\n{output.strip()}\n\n{found[2]}", page)


def insert(name: str, output: str) -> None:
    """Put results into every page that has a place for them."""
    for path in sorted(HERE.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = replaced(before, name, output)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{name}: {path.name}", flush=True)


def collected(folder: Path, quick: bool, text: str) -> list[str]:
    """Return the layer files of a folder, collected now where it has none."""
    if not list(folder.glob("*.safetensors")):
        size = ("--windows", "1", "--length", "32") if quick else ()
        subprocess.run([sys.executable, str(HERE / "collect.py"), str(folder), "--text", text, *size], check=True)
    return [str(file) for file in sorted(folder.glob("*.safetensors"))]


def main() -> int:
    """Run what is asked for; 1 if a command failed, after the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    parser.add_argument("--layers", type=Path, default=None, help="folder of collect.py; runs/layers by default")
    parser.add_argument("--text", default="builtin", help="calibration text where layers are collected")
    parser.add_argument("--quick", action="store_true", help="little data, no page is changed")
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        plots = Path(scratch) if arguments.quick else HERE
        folder = arguments.layers or (Path(scratch) / "layers" if arguments.quick else Path("runs/layers"))
        needed = any(LAYERS in BENCHMARKS[name].command for name in arguments.only)
        layers = collected(folder, arguments.quick, arguments.text) if needed else []
        for name in arguments.only:
            print(f"{name} …", flush=True)
            command = arguments_of(name, layers, plots, arguments.quick)
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                failed.append(name)
                print(f"{name} failed with exit code {done.returncode}", flush=True)
            elif not arguments.quick:
                insert(name, done.stdout)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
