"""Models with code of their own are refused before they are loaded, by both commands that convert."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from relaxprune.cli import main
from relaxprune.conversion.own_code import refuse_own_code
from relaxprune.runs.finished_run import read_finished_run

from ..command_line import only_sentence
from ..saved_models import edit_config

CODE = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}


def test_one_sentence_and_nothing_is_loaded(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "half", run)
    edit_config(run, model_type="own", auto_map=CODE)
    for module in ("conversion.converting", "timing.measuring"):
        monkeypatch.delattr(f"relaxprune.{module}.load_model")
    for name, words in (("masks convert", ["--to", "macko", "--out", str(tmp_path / "out")]), ("speed", [])):
        capsys.readouterr()
        assert main([*name.split(), str(run), *words]) == 2
        assert f"{name} does not take models with their own code" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_code_that_the_run_did_not_need_is_no_reason(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "half", run)
    edit_config(run, auto_map=CODE)
    refuse_own_code(read_finished_run(run), "speed")
    assert json.loads((run / "config.json").read_text())["auto_map"] == CODE
