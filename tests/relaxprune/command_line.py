"""What tests of the command line share: the words of a quick run, and what is seen of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from relaxprune.cli import main
from relaxprune.runs.run_folder import RunFolder

# One thread: for matrices this small, threads that wait for each other are all that takes time.
EFFORT = ["--windows", "4", "--length", "32", "--max-iterations", "12", "--threads", "1"]
SAME = ("model.safetensors", "masks.safetensors", "config.json", "tokenizer.json", "generation_config.json")


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    """Return the words that prune the model in ``place`` into ``out``."""
    calibration = ["--calibration", str(place / "text.txt")]
    amount = [] if "--pattern" in more else ["--sparsity", "0.5"]
    return ["prune", str(place / "tiny"), *amount, "--out", str(out), *calibration, *EFFORT, *more]


def run_process(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own."""
    return subprocess.run([sys.executable, "-P", *words], cwd=folder, capture_output=True, text=True, check=False)


def only_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stderr has: one line, no traceback."""
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text and "\n" not in text, text
    return text


def interrupt(monkeypatch: pytest.MonkeyPatch, out: Path, words: list[str]) -> None:
    """Run a command that the user ends while its second block is saved, so that one is kept in ``out``."""
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", interrupting(RunFolder.save, 2))
        assert main(words) == 130
    assert len(RunFolder(out, {}).solved_blocks) == 1


def interrupting(save: Any, deadly_call: int) -> Any:
    """Wrap ``save`` so that its ``deadly_call``-th call is an interruption by the user."""
    calls: list[None] = []

    def call(*arguments: Any) -> None:
        calls.append(None)
        if len(calls) == deadly_call:
            raise KeyboardInterrupt
        save(*arguments)

    return call
