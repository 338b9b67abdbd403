"""lm-eval: plain acc on a task in a local folder, without a network, in Python and by ``relaxprune eval --tasks``."""

from __future__ import annotations

import json
import random
from importlib.metadata import version
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from relaxprune import RelaxPruneError
from relaxprune.cli import main
from relaxprune.evaluation.tasks import TaskOptions, evaluate_tasks, open_tasks

from ..tiny_llama import save_tiny_llama
from .task_folder import write_task

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'relaxprune[eval]'")


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched, and the data set's own cache stays in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)


def likeliest(folder: Path, tasks: Path) -> float:
    """Score the task by hand: log-likelihood of " choice" after the question, summed over its tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = 0
    lines = (tasks / "pick_a_word.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        scores = []
        for choice in line["choices"]:
            tokens = tokenizer(f"{line['question']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                logits = model(tokens).logits[0]
            scores.append(float(logits[-2].log_softmax(-1)[tokens[0, -1]]))
        right += int(numpy.argmax(scores)) == line["answer"]
    return right / len(lines)


def test_acc_and_versions_of_a_local_task(tmp_path: Path) -> None:
    folder, tasks = save_tiny_llama(tmp_path / "tiny"), write_task(tmp_path / "tasks")
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    states = random.getstate(), numpy.random.get_state()[1].copy(), torch.get_rng_state()
    result = evaluate_tasks(model, tokenizer, ["pick_a_word"], TaskOptions(tasks, batch_size=4))
    assert random.getstate() == states[0] and (numpy.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2]) and model.training
    (score,) = result.scores
    assert score.acc == pytest.approx(likeliest(folder, tasks)) and 0 < score.acc < 1
    assert (score.examples, score.of, score.version, score.shots) == (12, 12, "3.0", 0) and score.stderr > 0
    assert result.lm_eval == version("lm_eval") and result.transformers == version("transformers")
    assert result.mean == score.acc


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tasks = save_tiny_llama(tmp_path / "tiny", blocks=1), write_task(tmp_path / "tasks")
    write_task(tasks, "another")
    words = ["eval", str(folder), "--tasks", "pick_a_word,another", "--task-path", str(tasks), "--limit", "6"]
    assert main([*words, "--out", str(tmp_path / "scores.json")]) == 0
    text = capsys.readouterr().out
    assert "pick_a_word" in text and f"lm-eval {version('lm_eval')}" in text and "6 of 12" in text
    written = json.loads((tmp_path / "scores.json").read_text())
    assert [score["task"] for score in written["scores"]] == ["pick_a_word", "another"]
    assert written["metric"] == "acc" and written["lm_eval"] == version("lm_eval") and written["limit"] == 6
    assert {score["version"] for score in written["scores"]} == {"3.0"} and written["model"] == str(folder)


def test_refusals_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tasks = save_tiny_llama(tmp_path / "tiny", blocks=1), write_task(tmp_path / "tasks")
    write_task(tasks, "no_acc", metric="f1")
    write_task(tasks, "no_data")
    (tasks / "no_data.jsonl").unlink()
    local = ["--task-path", str(tasks)]
    for more, expected in [
        (["--tasks", "pick_a_wrod", *local], "did you mean 'pick_a_word'"),
        (["--tasks", "no_acc", *local], "no plain acc, only f1"),
        (["--tasks", "no_data", *local], "data of task 'no_data' could not be loaded"),
        (["--tasks", " , "], "at least one name"),
        (["--tasks", "pick_a_word", "--task-path", str(tmp_path / "absent")], "must be a folder"),
        (["--tasks", "pick_a_word", *local, "--limit", "0"], "limit"),
        (["--tasks", "pick_a_word", *local, "--windows", "3"], "--windows"),
        (local, "--task-path"),
    ]:
        assert main(["eval", str(folder), *more]) == 2, expected
        error = capsys.readouterr().err
        assert expected in error.splitlines()[-1] and "Traceback" not in error
    with pytest.raises(RelaxPruneError, match="list of at least one name"):
        open_tasks("boolq", TaskOptions())


def test_without_lm_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relaxprune.evaluation.tasks.find_spec", lambda _name: None)
    with pytest.raises(RelaxPruneError, match=r"pip install 'relaxprune\[eval\]'"):
        open_tasks(["boolq"], TaskOptions())
