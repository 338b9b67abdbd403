"""``relaxprune report``: what the page says, that a browser shows it, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from relaxprune import (
    NM,
    KSparse,
    MaskProblem,
    ReconstructionProblem,
    certify,
    prune_model,
    solve,
)
from relaxprune.cli import main
from relaxprune.masks.density import grid
from relaxprune.report.side_by_side import comparison_content
from relaxprune.runs.finished_run import read_finished_run

from ..command_line import arguments, only_sentence
from ..tiny_llama import save_tiny_llama
from ..tiny_models import padded_batches, tiny_model

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
)  # fmt: skip
LONG = "a-name-that-no-phone-has-room-for" * 6
PROBE = """<!doctype html><title></title><meta name="color-scheme" content="light dark">
<body><iframe id="f" src="page.html" style="width:WIDTHpx;height:4000px;border:0"></iframe><script>
  document.getElementById("f").onload = (event) => {
    const root = event.target.contentDocument.documentElement, view = event.target.contentWindow;
    for (const item of root.querySelectorAll("details")) item.open = true;
    const drawn = [...root.querySelectorAll("figure svg")].map((item) => item.getBoundingClientRect());
    document.title = JSON.stringify({
      width: root.scrollWidth, headings: root.querySelectorAll("h2").length,
      pictures: drawn.length, flat: drawn.filter((box) => box.width < 100 || box.height < 20).length,
      background: view.getComputedStyle(view.document.body).backgroundColor,
      requests: view.performance.getEntriesByType("resource").length,
    });
  };</script></body>"""


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
    notes = record["notes"]
    assert f"{notes['peak_memory_bytes'] / 2**30:.2f} GiB" in text and notes["machine"] in text
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


def test_a_folder_that_has_the_name_of_its_model(runs: list[Path], place: Path, tmp_path: Path, monkeypatch) -> None:
    """The dense model of that name is not taken for the run's own, whatever was measured last."""
    folder = shutil.copytree(runs[1], tmp_path / "tiny")
    words = ["--text", str(place / "text.txt"), "--windows", "2", "--length", "32"]
    monkeypatch.chdir(folder)
    assert main(["eval", ".", *words]) == 0
    monkeypatch.chdir(place)
    assert main(["eval", "tiny", *words, "--record", str(folder)]) == 0
    kept = json.loads((folder / "evaluation.json").read_text())["results"]
    assert [(item["own"], item["method"], item["model"]) for item in kept] == [
        (True, "wanda", "tiny"), (False, "dense", "tiny"),
    ]  # fmt: skip
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    found = comparison_content([read_finished_run(moved), read_finished_run(runs[0])])["perplexity"]
    assert found["values"]["elsewhere"] == kept[0]["perplexity"] and found["dense"] == kept[1]["perplexity"]


def test_what_stages_gained_is_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "moved")
    record = json.loads((folder / "relaxprune.json").read_text())
    for layer in record["report"]["layers"]:
        layer["kept_objective"] = 2 * layer["objective"]
    numbers = {"epochs": 2, "steps": 8, "error_before": 0.5, "error_after": 0.25, "seconds": 1.0}
    record["report"]["tunings"] = [{"block": 0, **numbers, "held_out_before": 0.61, "held_out_after": 0.375}]
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "Blocks tuned as a whole" in text and "0.61" in text and "0.375" in text
    phases = [layer["phases"] for layer in json.loads((folder / "report.json").read_text())["layers"]]
    assert all(item["kept"] == pytest.approx(2 * item["final"]) for item in phases)
    assert "Blocks tuned as a whole" not in (runs[0] / "report.html").read_text(encoding="utf-8")


def test_a_run_that_pruned_nothing(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "bare")
    record = json.loads((folder / "relaxprune.json").read_text())
    record["report"]["layers"] = []
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    assert "Not pruned" in (folder / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["report", str(folder), str(runs[0]), "--out", str(tmp_path / "both.html")]) == 2
    assert "pruned no layer" in only_sentence(capsys)


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
    assert content["perplexity"] is None and "no text on which all of these runs were evaluated" in text
    capsys.readouterr()


def test_runs_that_were_evaluated_on_one_text(runs: list[Path], place: Path, tmp_path: Path) -> None:
    other = shutil.copytree(runs[1], tmp_path / "other")
    words = ["--text", str(place / "text.txt"), "--length", "32"]
    assert main(["eval", str(other), *words, "--windows", "3"]) == 0
    assert comparison_content([read_finished_run(runs[0]), read_finished_run(other)])["perplexity"] is None
    assert main(["eval", str(other), *words, "--windows", "2"]) == 0
    page = tmp_path / "both.html"
    assert main(["report", str(runs[0]), str(other), "--out", str(page)]) == 0
    found = json.loads(page.with_suffix(".json").read_text())["perplexity"]
    assert set(found["values"]) == {"reported", "other"} and found["where"].startswith("2 windows of 32 tokens")
    dense = [
        item for item in json.loads((runs[0] / "evaluation.json").read_text())["results"] if item["method"] == "dense"
    ]
    assert found["dense"] == dense[-1]["perplexity"]
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 6 + 2 + 4 + 1  # bars; roles and layers; two maps of each run; stages
    assert all(f"{value:.4g}" in text for value in found["values"].values())


def test_numbers_that_do_not_compare_are_named(runs: list[Path], tmp_path: Path) -> None:
    other = shutil.copytree(runs[0], tmp_path / "other")
    record = json.loads((other / "relaxprune.json").read_text())
    record["fingerprint"]["model"]["weights_sha256"] = "0" * 64
    record["fingerprint"]["settings"]["statistics"]["skip_tokens"] = 1
    del record["fingerprint"]["settings"]["objective"]  # which older runs lack
    record["notes"]["machine"] = "a faster one"
    del record["report"]["layers"][0]
    (other / "relaxprune.json").write_text(json.dumps(record))
    page = tmp_path / "both.html"
    assert main(["report", str(runs[0]), str(other), "--out", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for said in (
        "pruned different weights",
        "weigh their calibration text differently",
        "pruned different layers",
        "machines",
    ):
        assert said in text
    assert "different calibration text" not in text and "minimise different objectives" not in text


def test_only_the_pruned_weights_are_called_dense(runs: list[Path], place: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "run")
    save_tiny_llama(tmp_path / "stranger", blocks=1)
    for model in (runs[1], tmp_path / "stranger", place / "tiny"):
        words = ["--text", str(place / "text.txt"), "--windows", "1", "--length", "8", "--record", str(folder)]
        assert main(["eval", str(model), *words]) == 0
    kept = json.loads((folder / "evaluation.json").read_text())["results"][-3:]
    assert [item["method"] for item in kept] == ["wanda", "other", "dense"]


def test_an_older_run_is_read(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "older")
    record = json.loads((folder / "relaxprune.json").read_text())
    for layer in record["report"]["layers"]:
        layer["gone"] = layer.pop("corrected")
    del record["notes"]["machine"], record["notes"]["peak_memory_bytes"]
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    del record["report"]["layers"][2]["rows"]
    (folder / "relaxprune.json").write_text(json.dumps(record))
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    sentence = only_sentence(capsys)
    assert "a layer lacks 'rows'" in sentence and len(sentence) < 250


@pytest.mark.parametrize("gone", [True, False])
def test_what_a_record_may_lack_may_be_null(runs: list[Path], tmp_path: Path, gone: bool) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "bare")
    record = json.loads((folder / "relaxprune.json").read_text())
    for name in ("seconds", "roles", "permutations", "tunings", "coverage", "skipped"):
        record["report"][name] = None
        if gone:
            del record["report"][name]
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder), str(runs[1]), "--out", str(tmp_path / "both.html")]) == 0


def test_odd_numbers_and_names_are_drawn(runs: list[Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs[0], tmp_path / "odd")
    record = json.loads((folder / "relaxprune.json").read_text())
    layers = record["report"]["layers"]
    layers[0]["name"] = "model.layers.0.\u4e2d\u6587"  # no font of matplotlib has it
    layers[1] |= {"dense_energy": 0.0, "relative_error": 0.0, "objective": 0.0, "wanda_objective": 0.0}
    layers[2] |= {"lower_bound": -1.0, "relative_gap": 3.0}
    (folder / "relaxprune.json").write_text(json.dumps(record))
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder), str(runs[0]), "--out", str(tmp_path / "both.html")]) == 0
    assert "\u4e2d\u6587" in (folder / "report.html").read_text(encoding="utf-8")


def test_cells_of_a_mask_hold_whole_groups() -> None:
    mask = torch.zeros(100, 250, dtype=torch.bool)
    mask[:, ::2] = True  # two of every four
    shares = grid(mask, 4)
    assert (len(shares), len(shares[0])) == (34, 32) and {cell for row in shares for cell in row} == {0.5}
    mask[99] = False
    assert [row[0] for row in grid(mask)][-2:] == [0.5, 0.0]  # the last band is what is left


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
def test_a_browser_shows_it(runs: list[Path], tmp_path: Path, which: str) -> None:
    """Names that no phone has room for, everything unfolded, in both themes, on a phone and on a desk."""
    page = tmp_path / "page.html"
    folder = shutil.copytree(runs[0], tmp_path / "long")
    record = json.loads((folder / "relaxprune.json").read_text())
    record["notes"] |= {"base_model": LONG, "notices": [LONG], "command": LONG}
    record["report"]["layers"][0]["name"] = f"model.layers.0.{LONG}"
    record["report"]["skipped"].append({"name": LONG, "reason": LONG})
    (folder / "relaxprune.json").write_text(json.dumps(record))
    others = [] if which == "one" else [str(runs[1])]
    assert main(["report", str(folder), *others, "--out", str(page)]) == 0
    for width, dark in ((360, False), (360, True), (1280, True)):
        seen = look(page, tmp_path, width, dark)
        assert seen["width"] <= width and seen["pictures"] >= 4 and seen["headings"] >= 4, seen
        assert (seen["flat"], seen["requests"]) == (0, 0)
        assert seen["background"] == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


def look(page: Path, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """Show a page in a frame of some width; a page around it writes down what the frame comes to."""
    (folder / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    done = subprocess.run(
        [str(BROWSER), *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=8000",
         "--dump-dom", (folder / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert found, done.stdout[:2000] + done.stderr[:2000]
    seen: dict[str, Any] = json.loads(found[1])
    return seen


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
