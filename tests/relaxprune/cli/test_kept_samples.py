"""Calibration windows that the model wrote: read back by ``--resume``, and sampled where they are needed only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from relaxprune.cli import main
from relaxprune.runs import RunFolder
from relaxprune.text import windows as text_windows

from ..command_line import arguments, interrupt, only_sentence
from ..runs.test_every_call import result

MORE = ["--include", "*.mlp.up_proj", "--quiet"]
KEPT = ".relaxprune/samples.safetensors"


def words_of(place: Path, out: Path, *more: str) -> list[str]:
    return [*arguments(place, out, *MORE), "--calibration", f"{place / 'text.txt'}:3,self:2", *more]


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    out = place / "sampled-finished"
    assert main(words_of(place, out)) == 0
    assert not (out / ".relaxprune").exists()
    return out


@pytest.fixture
def stopped(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was interrupted after its first block."""
    out = tmp_path / "stopped"
    interrupt(monkeypatch, out, words_of(place, out))
    assert (out / KEPT).is_file()
    return out


@pytest.fixture
def no_sampling(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_windows, "sample_windows", lambda *_: pytest.fail("the model was asked for text"))


def otherwise(*asked: object) -> torch.Tensor:
    """Sample as a processor does that rounds otherwise."""
    return torch.full(asked[1:3], 5, dtype=torch.int64)


def test_a_resumed_run_reads_what_was_kept(place: Path, finished: Path, stopped: Path, no_sampling: None) -> None:
    assert main(words_of(place, stopped, "--resume")) == 0
    assert result(stopped) == result(finished)


def test_other_samples_are_refused_at_once(
    place: Path, stopped: Path, no_sampling: None, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(words_of(place, stopped, "--resume", "--seed", "1")) == 2
    assert "other samples of the model: seed was 0 and is now 1" in only_sentence(capsys)


def test_changed_text_is_refused(
    place: Path, stopped: Path, finished: Path, no_sampling: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text, before = place / "text.txt", (place / "text.txt").read_text()
    text.write_text(" ".join(reversed(before.split(" "))))
    try:
        for out in (stopped, finished):
            capsys.readouterr()
            assert main(words_of(place, out, "--resume")) == 2
            assert f"calibration.description.parts.{text}.sha256 was" in only_sentence(capsys)
    finally:
        text.write_text(before)


def test_where_no_samples_are_kept_the_model_writes_them(
    place: Path, finished: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / KEPT).unlink()
    other = shutil.copytree(stopped, stopped.with_name("other"))
    assert main(words_of(place, stopped, "--resume")) == 0
    assert result(stopped) == result(finished)
    monkeypatch.setattr(text_windows, "sample_windows", otherwise)
    capsys.readouterr()
    assert main(words_of(place, other, "--resume")) == 2
    assert "calibration.description.parts.self.sha256 was" in only_sentence(capsys)


def test_a_finished_run_says_so_without_sampling(
    place: Path, finished: Path, no_sampling: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(place, finished, "--resume")) == 0
    capsys.readouterr()
    assert main(words_of(place, finished, "--resume", "--seed", "1")) == 2
    assert "calibration.description.parts.self.seed was 0 and is now 1" in only_sentence(capsys)


def test_a_plan_does_not_sample(
    place: Path, tmp_path: Path, no_sampling: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words_of(place, tmp_path / "out", "--plan")) == 0
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_refused_before_sampling(
    place: Path, tmp_path: Path, no_sampling: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("relaxprune.support.outputs.shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    capsys.readouterr()
    assert main(words_of(place, tmp_path / "out")) == 2
    assert "free" in only_sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_windows_of_the_model_alone(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, words = tmp_path / "out", ["--calibration", "self"]
    interrupt(monkeypatch, out, words_of(place, out, *words))
    samples = RunFolder(out, {}).load_samples()
    assert samples is not None and samples.tokens.shape == (4, 32)
    monkeypatch.setattr(text_windows, "sample_windows", otherwise)
    for _ in range(2):  # unfinished, then finished
        assert main(words_of(place, out, *words, "--resume")) == 0
