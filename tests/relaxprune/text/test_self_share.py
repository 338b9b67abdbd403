"""The share of the calibration windows that the model writes, as the command line takes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relaxprune import RelaxPruneError
from relaxprune.cli import main
from relaxprune.text.mixture import spelt

from ..command_line import arguments, only_sentence
from ..recipe_words import job_of


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "builtin:64,self:21"),
        (("--windows", "24"), "builtin:24,self:8"),
        (("--solver", "reconstruct"), "builtin:64,self:32"),
        (("--refit",), "builtin:64,self:32"),
        (("--solver", "wanda"), "builtin:64"),
        (("--solver", "alps"), "builtin:64"),
        (("--solver", "wanda", "--self-share", "0.5"), "builtin:64,self:32"),
        (("--self-share", "0"), "builtin:64"),
        (("--self-share", "2"), "builtin:64,self:128"),
        (("--calibration", "self"), "self:64"),
        (("--calibration", "builtin:8"), "builtin:8"),
        (("--calibration", "builtin,python"), "builtin:32,python:32"),
    ],
    ids=" ".join,
)
def test_what_a_run_reads(words: tuple[str, ...], expected: str) -> None:
    assert spelt(job_of("--sparsity", "0.5", *words).sources) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--self-share", "-1"), "--self-share must be .*, got -1"),
        (("--self-share", "50"), "--self-share must be at most 10 samples for each window of the text, got 50"),
        (("--self-share", "0.1", "--windows", "6"), "--self-share must be at least one window for 6 of the text"),
        (("--self-share", "0.5", "--calibration", "builtin:8"), "--self-share is for a single text"),
        (("--self-share", "0.5", "--calibration", "self"), "--self-share is for a single text"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(RelaxPruneError, match=said):
        job_of("--sparsity", "0.5", *words)


def test_the_record_and_the_fingerprint_hold_the_mixture(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--calibration", str(place / "text.txt"), "--windows", "6", "--length", "16")
    assert main(arguments(place, tmp_path / "run", *words)) == 0
    assert "text.txt:6,self:2) run through the model first" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "relaxprune.json").read_text())
    assert record["fingerprint"]["calibration"]["source"].endswith("text.txt:6,self:2")
    assert record["fingerprint"]["settings"]["statistics"]["shrinkage"] == 0.2
    assert main(arguments(place, tmp_path / "run", *words, "--self-share", "0", "--resume")) == 2
    assert "calibration" in only_sentence(capsys)
