"""The benchmarks' runner: results land in their places, every script takes its arguments, and all of them run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from relaxprune.cli.demo_table import LONG_DIVERGENCES, LONG_PERPLEXITIES

from .blocks import ROOT

FOLDER = ROOT / "docs" / "benchmarks"


def _runner() -> ModuleType:
    return _script("all")


def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_results_replace_only_what_stands_in_their_place() -> None:
    page = (
        "a\n<!-- results: x -->\nold\n<!-- end of results -->\nb\n<!-- results: y -->\nkept\n<!-- end of results -->\n"
    )
    after = _runner().replaced(page, "x", "| new \\1 |\n")
    assert after.startswith("a\n<!-- results: x -->\n\n| new \\1 |\n\n<!-- end of results -->\nb\n")
    assert "old" not in after and "kept" in after
    assert _runner().replaced(after, "x", "| new \\1 |") == after
    assert _runner().replaced(page, "z", "nothing") == page


def test_every_benchmark_has_a_script_and_a_place() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in FOLDER.glob("*.md"))
    for name, benchmark in _runner().BENCHMARKS.items():
        assert (FOLDER / benchmark.command[0]).is_file()
        assert pages.count(f"<!-- results: {name} -->\n") == 1


def test_the_picture_shows_what_the_pages_say() -> None:
    found = _script("at_a_glance").figures()
    assert found.error["SparseGPT"] == pytest.approx((0.6436 + 0.3958 + 0.5286 + 0.6390) / 4)
    assert found.perplexity["ALPS"] == 15.15 and found.dense == 11.89
    assert found.divergence["Wanda"] == [0.6863, 0.8355, 1.0731]


def test_the_demo_quotes_what_the_pages_say() -> None:
    overview, judge = ((FOLDER / name).read_text(encoding="utf-8") for name in ("README.md", "judge.md"))
    for amount, values in LONG_PERPLEXITIES.items():
        for method, perplexity in values.items():
            assert f"| {method} | {amount.replace('%', ' %')} | {perplexity} |" in overview
    recipes = ("wanda", "alps", "reconstruct+robust+refined")
    for recipe, kl in zip(recipes, LONG_DIVERGENCES.values(), strict=True):
        line = next(line for line in judge.splitlines() if line.startswith(f"| 50% | {recipe} |"))
        assert f"{float(line.split('|')[3].split()[0]):.2f}" == kl


@pytest.mark.long
def test_all_benchmarks_run_on_little_data() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "all.py"), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
