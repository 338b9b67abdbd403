"""``relaxprune eval`` on several texts, against the dense model and versus another run, and what is kept of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from relaxprune import divergence, evaluation_windows
from relaxprune.cli import main
from relaxprune.report.side_by_side import comparison_content
from relaxprune.runs.finished_run import read_finished_run
from relaxprune.text import CalibrationOptions

from ..command_line import arguments, only_sentence
from ..tiny_llama import save_tiny_llama, tiny_tokenizer

EVALUATION = ["--windows", "3", "--length", "32"]


@pytest.fixture(scope="module")
def runs(place: Path) -> list[Path]:
    """Two runs of one model, by two solvers."""
    folders = [place / "by-fw", place / "by-wanda"]
    assert main(arguments(place, folders[0])) == 0
    words = ["prune", str(place / "tiny"), "--sparsity", "0.5", "--solver", "wanda", "--out", str(folders[1])]
    assert main([*words, "--calibration", str(place / "text.txt"), "--windows", "4", "--length", "32"]) == 0
    return folders


def results(folder: Path) -> list[dict]:
    return json.loads((folder / "evaluation.json").read_text())["results"]


def words(runs: list[Path], place: Path, *more: str) -> list[str]:
    return [
        "eval",
        str(runs[0]),
        "--against",
        str(place / "tiny"),
        "--text",
        str(place / "text.txt"),
        *EVALUATION,
        *more,
    ]


def test_one_table_and_what_is_kept(runs: list[Path], place: Path, tmp_path: Path, capsys) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    capsys.readouterr()
    assert main(words(copies, place, "--text", "self", "--versus", str(copies[1]))) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("text "))
    head = lines[start].split()
    assert head == ["text", "KL", "perplexity", "dense", "windows", "length", "versus", "difference", "lower"]
    kept = [[item for item in results(copy) if item["own"]] for copy in copies]
    tokenizer = tiny_tokenizer()
    model, other, dense = (AutoModelForCausalLM.from_pretrained(path) for path in (*copies, place / "tiny"))
    for line, source, one, two in zip(lines[start + 1 :], (str(place / "text.txt"), "self"), *kept, strict=False):
        tokens = evaluation_windows(
            source, tokenizer, CalibrationOptions(windows=3, length=32), model=dense, spread=True
        ).tokens
        first, second = (divergence(each, dense, tokens) for each in (model, other))
        difference = first.minus(second)
        for number in (first.mean, first.standard_error, second.mean, difference.mean, difference.standard_error):
            assert f"{number:.4f}" in line
        assert f" {first.perplexity.perplexity:.2f} " in line and f" {first.dense_perplexity.perplexity:.2f} " in line
        assert line.split()[0] == source
        assert (
            line.endswith(str(copies[0 if difference.mean < 0 else 1]))
            if difference.clear
            else line.endswith("not clear")
        )
        for item, result in ((one, first), (two, second)):
            assert item["text"] == source and item["tokens_sha256"] == result.tokens_sha256
            assert item["divergence"]["window_means"] == pytest.approx(result.window_means, rel=1e-6)
            assert item["divergence"]["against"] == str(place / "tiny")
    assert [(item["method"], item["own"]) for item in results(copies[0])] == [("fw", True), ("dense", False)] * 2
    assert f"kept in {copies[1]}, method wanda, dense" in lines


def test_several_texts_without_a_dense_model(runs: list[Path], place: Path, tmp_path: Path, capsys) -> None:
    second = shutil.copy(place / "text.txt", tmp_path / "second.txt")
    capsys.readouterr()
    texts = ["--text", str(place / "text.txt"), "--text", str(second)]
    assert main(["eval", str(place / "tiny"), *texts, *EVALUATION]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("3 windows of 32 tokens" in line for line in lines)


def test_the_dense_model_does_not_diverge_from_itself(place: Path, capsys) -> None:
    model = str(place / "tiny")
    assert main(["eval", model, "--against", model, "--text", str(place / "text.txt"), *EVALUATION]) == 0
    assert "0.0000 ± 0.0000" in capsys.readouterr().out


def test_a_divergence_outlives_a_plain_evaluation_of_the_same_weights(
    runs: list[Path], place: Path, tmp_path: Path
) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    assert main(words(copies, place)) == 0
    before = next(item for item in results(copies[0]) if item["own"])["divergence"]
    assert main(["eval", str(copies[0]), "--text", str(place / "text.txt"), *EVALUATION]) == 0
    own = [item for item in results(copies[0]) if item["own"]]
    assert before is not None and before in [item["divergence"] for item in own]  # on windows all over the text


def test_reports_show_divergences_and_paired_differences(runs: list[Path], place: Path, tmp_path: Path, capsys) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    found = comparison_content([read_finished_run(copy) for copy in copies])
    assert found["divergence"] == []
    assert main(words(copies, place, "--versus", str(copies[1]))) == 0
    assert main(["report", str(copies[0])]) == 0
    page = (copies[0] / "report.html").read_text(encoding="utf-8")
    own = next(item for item in results(copies[0]) if item["own"])["divergence"]
    other = next(item for item in results(copies[1]) if item["own"])["divergence"]
    assert f">{own['mean']:.4g}<" in page and f">{own['standard_error']:.4g}<" in page and ">KL<" in page
    assert main(["report", *map(str, copies), "--out", str(tmp_path / "both.html")]) == 0
    both = (tmp_path / "both.html").read_text(encoding="utf-8")
    (text,) = json.loads((tmp_path / "both.json").read_text())["divergence"]
    differences = torch.tensor(other["window_means"]).double() - torch.tensor(own["window_means"]).double()
    assert text["differences"]["by-wanda"]["mean"] == pytest.approx(float(differences.mean()), abs=1e-9)
    expected = float(differences.std() / 3**0.5)
    assert text["differences"]["by-wanda"]["standard_error"] == pytest.approx(expected, rel=1e-5)
    assert "by-wanda less by-fw" in both and f"{text['values']['by-fw']['mean']:.4f} ± " in both
    # Against other weights there is nothing to pair.
    file = copies[1] / "evaluation.json"
    file.write_text(file.read_text().replace(other["against_sha256"], "0" * 64))
    assert comparison_content([read_finished_run(copy) for copy in copies])["divergence"] == []


def test_an_older_evaluation_is_read_and_a_damaged_one_refused(
    runs: list[Path], place: Path, tmp_path: Path, capsys
) -> None:
    copies = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    assert main(words(copies, place)) == 0
    file = copies[0] / "evaluation.json"
    content = json.loads(file.read_text())
    older = [{key: value for key, value in item.items() if key != "divergence"} for item in content["results"]]
    file.write_text(json.dumps({**content, "results": older}))
    assert [item.divergence for item in read_finished_run(copies[0]).evaluations] == [None, None]
    assert main(["report", str(copies[0])]) == 0
    assert ">KL<" not in (copies[0] / "report.html").read_text(encoding="utf-8")
    del content["results"][0]["divergence"]["window_means"][0]
    file.write_text(json.dumps(content))
    capsys.readouterr()
    assert main(["report", str(copies[0])]) == 2
    assert "2 window means of 3 windows" in only_sentence(capsys)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--versus", "other"], "there is no --against"),
        (["--text", "self"], "name that with --against"),
        (["--text", "builtin", "--text", "builtin"], "'builtin' more than once"),
        (["--text", "bultin"], "did you mean 'builtin'"),
        (["--against", "TINY", "--text", "absent.txt"], "no such file"),
        (["--against", "./absent"], "'./absent' looks like a path"),
        (["--against", "TINY", "--versus", "./absent"], "'./absent' looks like a path"),
        (["--against", "TINY", "--tasks", "boolq"], "--against is given, but text is not read"),
        (["--against", "TINY", "--record", "TINY"], "--record must name a folder"),
    ],
)
def test_refused_before_a_model_is_loaded(place: Path, monkeypatch, capsys, more: list[str], expected: str) -> None:
    tiny = str(place / "tiny")
    monkeypatch.setattr("relaxprune.models.loading._load", lambda *_: pytest.fail("weights were loaded"))
    assert main(["eval", tiny, *[tiny if word == "TINY" else word for word in more]]) == 2
    assert expected in only_sentence(capsys)


def test_another_tokenizer_is_refused_before_any_work(runs: list[Path], tmp_path: Path, place: Path, capsys) -> None:
    other = shutil.copytree(place / "tiny", tmp_path / "other")
    text = (other / "tokenizer.json").read_text().replace('"word7"', '"sept"')
    (other / "tokenizer.json").write_text(text)
    capsys.readouterr()
    assert main(["eval", str(runs[0]), "--against", str(other), "--text", str(place / "text.txt"), *EVALUATION]) == 2
    assert "differs in 2 tokens (the first is 'sept', id 9)" in only_sentence(capsys)


def test_a_padded_vocabulary_is_refused(runs: list[Path], tmp_path: Path, place: Path, capsys) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_tiny_llama(tmp_path / "padded"))
    model.resize_token_embeddings(128)
    model.save_pretrained(tmp_path / "padded")
    capsys.readouterr()
    against = ["--against", str(tmp_path / "padded"), "--text", str(place / "text.txt")]
    assert main(["eval", str(runs[0]), *against, *EVALUATION]) == 2
    assert "vocabularies of 122 and 128" in only_sentence(capsys)
