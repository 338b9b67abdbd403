"""What a run says: a dashboard, lines, events for machines, or the result alone."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from relaxprune.cli import main
from relaxprune.cli.prune.dashboard import Dashboard
from relaxprune.pruning.plan import PlannedLayer

from ..command_line import arguments, only_sentence
from ..reports import event, layer_report


def events_of(text: str) -> list[dict[str, object]]:
    events = [json.loads(line) for line in text.splitlines()]
    assert {event["schema_version"] for event in events} == {1}
    return events


def test_events_for_machines(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(arguments(place, out, "--json")) == 0
    events = events_of(capsys.readouterr().out)
    kinds = [event["event"] for event in events]
    assert kinds.count("layer_done") == 21 and kinds.count("block_start") == 3 and kinds[-1] == "message"
    done = next(event for event in events if event["event"] == "layer_done")
    record = json.loads((out / "relaxprune.json").read_text())
    assert done["report"] == record["report"]["layers"][0]
    result = next(event for event in events if event["event"] == "result")
    assert result["folder"] == str(out) and result["pruned_layers"] == 21 and result["notices"] == []
    assert main(arguments(place, out, "--json", "--resume")) == 0
    assert "finished" in events_of(capsys.readouterr().out)[-1]["text"]


def test_quiet_leaves_the_result(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(place, tmp_path / "out", "--quiet")) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("written to")
    assert main(arguments(place, tmp_path / "other", "--quiet", "--json")) == 2
    assert "give one of --json and --quiet" in only_sentence(capsys)
    assert main(arguments(place, tmp_path / "plan", "--quiet", "--plan")) == 0
    assert "21 layers" in capsys.readouterr().out


def test_the_dashboard_shows_where_the_run_is() -> None:
    layers = [PlannedLayer(name, "Linear", 10, 20, 5, block) for block, name in enumerate("ab")]
    console = Console(file=io.StringIO(), force_terminal=True, width=90, color_system=None)
    with Dashboard(layers, console=console) as board:
        board(event("layer_start", "a"))
        board(event("layer_done", "a", replace(layer_report("a"), name="[bold]a"), seconds_elapsed=8.0))
        board(event("layer_start", "b", block=1, layer_index=1, seconds_elapsed=8.0))
        drawn = Console(file=io.StringIO(), width=90)
        drawn.print(board._draw())
        text = drawn.file.getvalue()
    for words in ("2 of 2", "1 of 2", "0.500 of Wanda's", "GiB at most", "8.0 s", "[bold]a", "pruning"):
        assert words in text, text


def test_a_terminal_that_an_exception_leaves_is_in_order() -> None:
    layers = [PlannedLayer("a", "Linear", 10, 20, 5, 0)]
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(RuntimeError), Dashboard(layers, console=console):
        raise RuntimeError
    assert console.file.getvalue().endswith("\x1b[?25h")  # the cursor is shown again
