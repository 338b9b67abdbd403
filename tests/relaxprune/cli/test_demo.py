"""The demo: what it shows and when, and that it goes on where it was interrupted."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from relaxprune import read_masks
from relaxprune.cli import main
from relaxprune.runs.evaluation_file import read_evaluations
from relaxprune.runs.run_folder import RunFolder

from ..command_line import interrupting
from ..tiny_llama import save_tiny_llama

WORDS = ["--windows", "2", "--held-out", "2", "--length", "32", "--max-iterations", "8"]
HALF = [["dense", "-"], ["Wanda", "50%"], ["relaxprune", "50%"]]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A demo of a tiny model with --full: its folder, and what it printed."""
    place = tmp_path_factory.mktemp("demo")
    save_tiny_llama(place / "tiny", blocks=1)
    text = io.StringIO()
    with redirect_stdout(text):
        main(["demo", str(place / "tiny"), "--full", "--out", str(place / "out"), *WORDS])
    yield place / "out", text.getvalue()


def test_the_first_result_comes_before_the_other_runs(full: tuple[Path, str]) -> None:
    out, text = full
    first, rest = text.split("first result after")
    assert [line[:2] for line in table_of(first)] == [HALF[0], HALF[2]]
    assert str(out / "report.html") in first
    assert [line[:2] for line in table_of(rest)] == [*HALF, ["Wanda", "2:4"], ["relaxprune", "2:4"]]
    assert table_of(first)[1] == table_of(rest)[2]
    assert "2 held-out windows of 32 tokens" in text and "peak memory" in text and "effort: fast" in text
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "tiny"]


def test_the_folder_and_its_page_have_the_perplexities(full: tuple[Path, str]) -> None:
    out, text = full
    assert (out / "relaxprune.json").is_file()
    kept = {item.method: f"{item.perplexity:.2f}" for item in read_evaluations(out)}
    assert kept == {name: line[2] for name, line in zip(("dense", "wanda", "fw"), table_of(text), strict=False)}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(perplexity in page for perplexity in kept.values())


def test_the_short_demo_has_one_pattern(full: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    place = full[0].parent
    code = main(["demo", str(place / "tiny"), "--out", str(place / "short"), *WORDS])
    text, errors = capsys.readouterr()
    assert table_of(text) == table_of(full[1])[:3]
    assert "Quoted" not in text, "the figures of longer runs are those of another model"
    assert code == 0 or "is not below Wanda's" in errors, "a random model may prefer Wanda; then it is said"


def test_the_short_demo_prunes_the_first_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny_llama(tmp_path / "tiny", blocks=2)
    main(["demo", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--blocks", "1", *WORDS])
    assert "pruned are the first 1 blocks; --full prunes all" in capsys.readouterr().out
    assert all(name.startswith("model.layers.0.") for name in read_masks(tmp_path / "out"))


@pytest.mark.parametrize("call", [1, 3, *(pytest.param(call, marks=pytest.mark.long) for call in (2, 4))])
def test_a_demo_goes_on_where_it_was_interrupted(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    full: tuple[Path, str],
    call: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("relaxprune.cli.demo_run.write_report", lambda _: "page")
    words = ["demo", str(full[0].with_name("tiny")), "--full", *WORDS]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", interrupting(RunFolder.save, call))
        assert main([*words, "--out", "runs/demo-1"]) == 130
    said = capsys.readouterr().err
    assert ("nothing is written" if call == 1 else "--resume with --out runs/demo-1 continues") in said
    assert (tmp_path / "runs").exists() == (call > 1)
    if call > 1:
        assert main([*words, "--out", "runs/demo-1"]) == 2
        assert "add --resume" in capsys.readouterr().err
    main([*words, "--resume", *(["--out", "runs/demo-1"] if call == 1 else [])])
    assert table_of(capsys.readouterr().out) == table_of(full[1])
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["demo-1"]
    assert main([*words, "--resume"]) == 2
    assert "no demo in 'runs' was interrupted" in capsys.readouterr().err


def table_of(text: str) -> list[list[str]]:
    """The rows of a demo's last table without the seconds."""
    lines = text.splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith("method ")) + 1
    return [line.split()[:-1] for line in lines[start : lines.index("", start)]]
