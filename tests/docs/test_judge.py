"""The table of recipes: what it measures, that it goes on where it was, and which recipes it takes."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.relaxprune.tiny_llama import save_tiny_llama, write_text

from .blocks import ROOT

FOLDER = ROOT / "docs/benchmarks"
Judge = Callable[..., str]


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Judge]:
    """Runs the script on a tiny model, and returns what it prints or the reason why it stops."""
    save_tiny_llama(tmp_path / "tiny", blocks=1)
    write_text(tmp_path / "text.txt")
    common = ["--model", str(tmp_path / "tiny"), "--calibration", str(tmp_path / "text.txt"), "--windows", "3"]
    common += ["--length", "32", "--held-out", "3", "2", "--texts", "like", "self", "--plain", "wanda"]
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def run(*more: str) -> str:
        monkeypatch.setattr("sys.argv", ["judge.py", str(tmp_path / "table"), *common, *more])
        capsys.readouterr()
        try:
            runpy.run_path(str(FOLDER / "judge.py"), run_name="__main__")
        except SystemExit as stop:
            return f"{stop} {capsys.readouterr().err}"
        return "".join(capsys.readouterr())

    yield run
    for name in {"common", "recipes"} - before:  # of that folder; other tests may have their own
        sys.modules.pop(name, None)


def test_a_table_is_filled_and_continued(judge: Judge, tmp_path: Path) -> None:
    judge("--targets", "50", "--recipes", "wanda", "broken=--solver magnitude --include nothing")
    file = tmp_path / "table/judge.json"
    first = json.loads(file.read_text())["cells"]
    assert "failed" not in first[0] and "failed" in first[1]
    printed = judge("--targets", "50", "2of4", "--recipes", "wanda", "plain=--solver magnitude", "wanda+robust")
    content = json.loads(file.read_text())
    cells = {(cell["target"], cell["recipe"]): cell for cell in content["cells"]}
    assert cells["50", "wanda"] == first[0] and len(cells) == 7
    for cell in (cells["50", "plain"], cells["2of4", "wanda"]):
        assert [len(cell["texts"][text]["window_means"]) for text in ("like", "self")] == [3, 2]
        assert cell["texts"]["like"]["mean"] > 0 and cell["seconds"] > 0
        assert cell["texts"]["like"]["dense_perplexity"]["perplexity"] == content["dense"]["like"]
    assert cells["50", "wanda"]["of_wanda"] == 1.0 and cells["50", "plain"]["of_wanda"] > 1
    tables = (tmp_path / "table/judge.md").read_text(encoding="utf-8")
    own, base = (cells["2of4", recipe]["texts"]["self"] for recipe in ("plain", "wanda"))
    assert f"{own['mean']:.4f} ± {own['standard_error']:.4f}" in tables
    assert f"| {own['mean'] - base['mean']:.4f} ± " in tables and tables in printed
    # What is there is not repeated, nothing is begun after the time is up, and other windows are refused.
    assert "out of time" not in judge("--targets", "50", "--recipes", "wanda", "--minutes", "0")
    assert "out of time before wanda at 60" in judge("--targets", "60", "--recipes", "wanda", "--minutes", "0")
    assert "cells of other windows" in judge("--windows", "4")


def test_a_refinement_goes_on_where_the_same_recipe_ended(judge: Judge, tmp_path: Path) -> None:
    file = tmp_path / "table/judge.json"
    judge("--targets", "50", "--recipes", "wanda+refined")
    alone = json.loads(file.read_text())["cells"][0]
    file.unlink()
    judge("--targets", "50", "--recipes", "wanda", "wanda+refined")
    wanda, refined = json.loads(file.read_text())["cells"]
    assert refined["texts"] == alone["texts"] and refined["relative_error"] == wanda["relative_error"]
    assert refined["texts"]["like"]["mean"] < wanda["texts"]["like"]["mean"]
    assert all(refined["stages"][stage] >= wanda["stages"][stage] for stage in ("solve", "statistics"))


def test_recipes_that_are_not_there_are_refused_first(judge: Judge) -> None:
    assert "'wandb' is not one of wanda" in judge("--recipes", "wandb")
    assert "'sturdy' is not one of robust" in judge("--recipes", "wanda+sturdy")
