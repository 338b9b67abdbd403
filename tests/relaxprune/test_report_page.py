"""`relaxprune report`: what the page says, that a browser shows it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from relaxprune import NM, KSparse, MaskProblem, ReconstructionProblem, certify, prune_model, solve
from relaxprune.cli import main

from .test_cli_prune import arguments, only_sentence
from .test_cli_prune import place as place  # a fixture
from .tiny_models import padded_batches, tiny_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(place: Path) -> list[Path]:
    """Two runs, one of them evaluated."""
    folders = [place / "reported", place / "reported-wanda"]
    assert main(arguments(place, folders[0])) == 0
    words = ["prune", str(place / "tiny"), "--pattern", "2:4", "--solver", "wanda", "--out", str(folders[1])]
    calibration = ["--calibration", str(place / "text.txt"), "--windows", "4", "--length", "32"]
    assert main([*words, *calibration]) == 0
    evaluation = ["--text", str(place / "text.txt"), "--windows", "2", "--length", "32"]
    assert main(["eval", str(folders[0]), *evaluation]) == 0
    assert main(["eval", str(place / "tiny"), *evaluation, "--record", str(folders[0])]) == 0
    assert main(["report", str(folders[0])]) == 0
    return folders


class Tags(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        keys = ("src", "srcset", "data", "xlink:href", *(("href",) if tag in ("link", "use", "image") else ()))
        self.sources += [value or "" for key, value in attrs if key in keys]


def test_the_page_says_what_the_record_says(runs: list[Path]) -> None:
    text = (runs[0] / "report.html").read_text(encoding="utf-8")
    record = json.loads((runs[0] / "relaxprune.json").read_text())
    content = json.loads((runs[0] / "report.json").read_text())
    assert f"{record['report']['mean_relative_error']:.4g}" in text
    assert record["fingerprint"]["model"]["weights_sha256"] in text and record["notes"]["command"].split()[0] in text
    for item in record["report"]["skipped"]:
        assert item["reason"] in text.replace("&#39;", "'")
    measured = json.loads((runs[0] / "evaluation.json").read_text())["results"]
    assert {item["method"] for item in measured} == {"fw", "dense"}
    assert all(f"{item['perplexity']:.4g}" in text for item in measured)
    assert content["schema_version"] == 1
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.names and not [
        source for source in tags.sources if not source.startswith(("#", "data:"))
    ]
    assert "@import" not in text and not re.search(r"url\((?!['\"]?(#|data:))", text)
    assert "prefers-color-scheme" in text and 'name="viewport"' in text


def test_names_from_outside_are_text(runs: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(runs[0], folder)
    record = json.loads((folder / "relaxprune.json").read_text())
    evil = '<script>alert(1)</script>"$x$'
    record["report"]["layers"][0]["name"] = f"model.layers.0.{evil}"
    record["report"]["skipped"].append({"name": evil, "reason": evil})
    record["fingerprint"]["model"]["source"] = evil
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    tags = Tags()
    text = (folder / "report.html").read_text(encoding="utf-8")
    tags.feed(text)
    assert "script" not in tags.names and "&lt;script&gt;" in text


def test_runs_side_by_side(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "both.html"
    assert main(["report", *map(str, runs), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "Settings that differ" in text and "settings.solver" in text and "Overlap of the masks" in text
    content = json.loads(page.with_suffix(".json").read_text())
    assert set(content["runs"]) == {"reported", "reported-wanda"}
    assert 0 < content["overlap"][0]["jaccard"] < 1
    capsys.readouterr()


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.html").write_text("my own page")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "relaxprune.json").write_text("{")
    for words, expected in (
        ([str(tmp_path / "absent")], "absent"),
        ([str(tmp_path / "damaged")], "damaged"),
        ([str(runs[0]), str(runs[1])], "--out"),
        ([str(runs[0]), "--out", str(tmp_path / "page.txt")], ".html"),
        ([str(runs[0]), "--out", str(tmp_path / "mine.html")], "mine.html"),
    ):
        capsys.readouterr()
        assert main(["report", *words]) == 2
        assert expected in only_sentence(capsys)
    assert (tmp_path / "mine.html").read_text() == "my own page"
    assert main(["eval", "smollm2-135m", "--record", str(tmp_path)]) == 2
    assert "--record must name a folder" in only_sentence(capsys)


@pytest.mark.skipif(BROWSER is None, reason="no chromium: the page is not looked at by a browser")
@pytest.mark.parametrize("which", ["one", "both"])
def test_a_browser_shows_it_on_a_phone(runs: list[Path], tmp_path: Path, which: str) -> None:
    """A page around it, with a frame as wide as a phone, writes down what the frame comes to."""
    page = tmp_path / "page.html"
    assert main(["report", *map(str, runs[: 1 if which == "one" else 2]), "--out", str(page)]) == 0
    probe = """<body><iframe id="f" src="page.html" style="width:360px;height:4000px;border:0"></iframe><script>
      document.getElementById("f").onload = (event) => {
        const root = event.target.contentDocument.documentElement;
        const wide = (item) => item.getBoundingClientRect().width > 20;
        const drawn = [...root.querySelectorAll("svg")].filter(wide).length;
        const headings = root.querySelectorAll("h2").length;
        document.title = `width ${root.scrollWidth} of 360, pictures ${drawn}, headings ${headings}`;
      };</script></body>"""
    (tmp_path / "probe.html").write_text(probe)
    done = subprocess.run(
        [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--dump-dom",
         (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    found = re.search(r"width (\d+) of 360, pictures (\d+), headings (\d+)", done.stdout)
    assert found, done.stdout[:2000] + done.stderr[:2000]
    width, pictures, headings = map(int, found.groups())
    assert width <= 360 and pictures >= 4 and headings >= 4


def test_objects_show_themselves_in_a_notebook() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 16, generator=generator) @ torch.randn(16, 16, generator=generator)
    problem = MaskProblem(torch.randn(6, 16, generator=generator), inputs.T @ inputs / 200, KSparse(8))
    solution = solve(problem)
    moved = solve(ReconstructionProblem(problem.weight, problem.gram, NM(2, 4)))
    report = prune_model(tiny_model("llama"), padded_batches(), sparsity=0.5, solver="wanda")
    shown = [solution, solution.certificate, certify(problem, solution, "diagonal"), moved, moved.certificate, report]
    for item in shown:
        text = item._repr_html_()
        tags = Tags()
        tags.feed(text)
        assert {"table", "svg"} <= tags.names and "script" not in tags.names and "<table" not in repr(item)
    assert f"{solution.relative_gap:.4g}" in solution._repr_html_()
    assert "weights kept" in moved._repr_html_() and "weights kept" not in solution._repr_html_()
