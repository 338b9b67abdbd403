"""``relaxprune solve`` of many files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from relaxprune import read_masks
from relaxprune.cli import main

from ..command_line import only_sentence
from ..layer_files.layers import BROKEN, break_file, write_layers

HALF = ["--sparsity", "0.5", "--max-iterations", "20"]


def test_two_hundred_files_of_which_three_are_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, out = write_layers(tmp_path / "layers", 200), tmp_path / "out"
    for number, how in zip((17, 58, 123), BROKEN, strict=True):
        break_file(files[number], how)
    words = ["solve", *map(str, files), *HALF, "--jobs", "2", "--out", str(out)]
    assert main(words) == 3
    told = capsys.readouterr()
    reasons = told.err.strip().splitlines()
    assert [line.split(": ")[1] for line in reasons] == ["layer017", "layer058", "layer123"]
    assert all(reason in line for reason, line in zip(BROKEN.values(), reasons, strict=True))
    assert "197 solved, 0 kept, 3 failed" in told.out and told.out.count("solved, relative error") == 197
    answers = {path: path.stat().st_mtime_ns for path in (out / "layers").rglob("*") if path.is_file()}
    assert sum(path.name == "masks.safetensors" for path in answers) == 197

    alone = tmp_path / "alone.safetensors"
    assert main(["solve", str(files[99]), *HALF, "--out", str(alone)]) == 0
    assert torch.equal(read_masks(alone)["weight"], read_masks(out / "layers/layer099")["weight"])
    capsys.readouterr()

    assert main(words) == 3
    again = capsys.readouterr()
    assert again.err.strip().splitlines() == reasons
    assert "0 solved, 197 kept, 3 failed" in again.out
    assert {path: path.stat().st_mtime_ns for path in (out / "layers").rglob("*") if path.is_file()} == answers
    summary = json.loads((out / "summary.json").read_text())
    assert sum(file["attempts"] for file in summary["files"]) == 0


def test_one_file_of_many_has_the_same_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file,) = write_layers(tmp_path / "layers", 1)
    out = tmp_path / "out"
    words = [
        "solve",
        str(file),
        "--sparsity",
        "0.5",
        "--solver",
        "alps",
        "--no-refit",
        "--jobs",
        "1",
        "--memory",
        "2GiB",
    ]
    assert main([*words, "--retries", "0", "--out", str(out)]) == 3
    assert "ran without new values for the kept weights" in only_sentence(capsys)
    assert read_masks(out / "layers/layer000")["weight"].sum() == 16


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--jobs", "2"], "--out must name a folder"),
        (["--jobs", "0", "--out", "new"], "jobs must be a whole number of at least 1"),
        (["--jobs", "2", "--out", "new", "--memory", "much"], "--memory must be a size such as 24GiB"),
        (["--jobs", "2", "--out", "new", "--weight-out", "w"], "--weight-out is 'w'"),
        (["--jobs", "2", "--out", "new", "--certificate", "c"], "--certificate is 'c'"),
        (["--jobs", "2", "--out", "new", "--certify-rows", "2"], "there is no --certify"),
        (["--jobs", "2", "--out", "new", "--effort", "most"], "effort"),
        (["--retries", "2"], "--retries is 2, which is for many files"),
        (["--memory", "2GiB"], "--memory is 2GiB, which is for many files"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = write_layers(tmp_path / "layers", 1)
    monkeypatch.chdir(tmp_path)
    assert main(["solve", str(file), "--sparsity", "0.5", *words]) == 2
    assert expected in only_sentence(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layers"]
