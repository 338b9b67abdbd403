"""The benchmarks' runner: results land in their places, every script takes its arguments, and all of them run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from .blocks import ROOT

FOLDER = ROOT / "docs" / "benchmarks"


def _runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_all", FOLDER / "all.py")
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


@pytest.mark.long
def test_all_benchmarks_run_on_little_data() -> None:
    done = subprocess.run([sys.executable, str(FOLDER / "all.py"), "--quick"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
